"""The benchmark's own logic: turns, medians, ratios, verdicts, the page. No peers are needed, and no time is judged."""

import importlib
import json

import pytest
import torch

import bench
import page
from child import cases, measure
from memory import Peak, bytes_of
from timing import Absent, Aim, Case, Work, summarise
from tiny import random_sae, tiny_gemma


def run(seconds, **others):
    return {"seconds": seconds, "tensor_bytes": 2_000_000, "peak_bytes": 5_000_000, "facts": {}} | others


def case(aims, **sides):
    return Case("512 tokens", {side: lambda _: None for side in sides}, aims)


def summary(aims, **sides):
    runs = {side: [run(seconds) for seconds in times] for side, times in sides.items()}
    return summarise(case(aims, **sides), runs)


def record(*found):
    about = {"processor": "A Processor", "instructions": ["amx_bf16"], "cores": 2}
    versions = {"torch": "2.13.0", "transformers": "4.57.3"}
    return {
        "cases": list(found),
        "repetitions": 3,
        "command": "make bench ROWS=x",
        "machine": about,
        "versions": versions,
    }


def test_medians_and_ratios_are_of_the_medians_and_the_range_is_of_pairs():
    found = summary({}, gemlens=[1.0, 2.0, 9.0], peer=[8.0, 4.0, 6.0])
    assert found["sides"]["gemlens"]["seconds"] == {"median": 2.0, "min": 1.0, "max": 9.0}
    (ratio,) = found["ratios"]
    assert ratio["faster"] == 3.0  # 6 / 2
    assert (ratio["low"], ratio["high"]) == (6 / 9, 8.0)
    assert ratio["aim"] is None and ratio["reached"] is None


@pytest.mark.parametrize(
    ("aim", "ours", "theirs", "reached"),
    [
        (Aim(faster=2), 1.0, 2.0, True),
        (Aim(faster=2), 1.0, 1.99, False),
        (Aim(longer=1.02), 1.02, 1.0, True),
        (Aim(longer=1.02), 1.03, 1.0, False),
        (Aim(longer=1.02), 0.5, 1.0, True),
        (Aim(seconds=0.3), 0.3, 0.3, True),
        (Aim(seconds=0.3), 0.31, 0.31, False),
    ],
)
def test_an_aim_is_reached_or_missed(aim, ours, theirs, reached):
    assert aim.reached(ours, theirs) is reached


def test_a_missed_aim_is_shown_as_missed_everywhere():
    rows = {"encode": record(summary({"peer": Aim(faster=2)}, gemlens=[1.0], peer=[1.5]))}
    assert "| encode | 512 tokens | peer | 1.50 × as fast | ≥ 2 × as fast | **missed** |" in page.summary_part(rows)
    assert "**missed**" in page.row_part(rows["encode"])
    assert any("missed" in line for line in page.lines(rows["encode"]["cases"][0]))


def test_a_side_that_should_take_no_longer_is_shown_by_its_time():
    found = summary({"floor": Aim(longer=1.02)}, gemlens=[1.0, 1.1], floor=[1.0, 1.0])
    part = page.row_part(record(found))
    assert "1.050 × the time | 1.00 - 1.10 | ≤ 1.02 × the time | **missed**" in part


def test_seconds_of_its_own_are_held_against_the_side_itself():
    rows = {"start": record(summary({"gemlens": Aim(seconds=0.3)}, gemlens=[0.1]))}
    assert "| start | 512 tokens | – | 100 ms | ≤ 0.3 s | reached |" in page.summary_part(rows)


def test_memory_that_could_not_be_measured_is_said_so():
    found = summarise(case({}, gemlens=1), {"gemlens": [run(1.0, peak_bytes=None)]})
    assert found["sides"]["gemlens"]["peak_bytes"] is None
    assert "| – | 2 MB |" in page.row_part(record(found))


def test_steps_are_medians_of_all_runs():
    runs = [run(1.0, facts={"steps": {"import torch": seconds}}) for seconds in (1.0, 2.0, 7.0)]
    assert "| import torch | 2.00 s |" in page.row_part(record(summarise(case({}, gemlens=1), {"gemlens": runs})))


def test_speed_and_what_runs_tell_of_their_results_are_shown():
    runs = {
        name: [run(seconds, facts={"tokens": 3000, "told": {"unexplained": left}}) for seconds, left in told]
        for name, told in {"gemlens": [(1.0, 0.1), (2.0, 0.9), (3.0, 0.2)], "peer": [(4.0, 0.3)] * 3}.items()
    }
    found = summarise(case({}, gemlens=1, peer=1), runs)
    part = page.row_part(record(found))
    assert "| 512 tokens | tokens/s | unexplained |\n|---|---|---|\n| gemlens | 1,500 | 0.200 |\n| peer | 750 |" in part
    assert any("tokens/s 1,500, unexplained 0.200" in line for line in page.lines(found))
    assert "tokens/s" not in page.row_part(record(summary({}, gemlens=[1.0])))


def test_results_that_differ_are_shown():
    found = summary({}, gemlens=[1.0]) | {"same": {"active": 1234, "holds": False}}
    assert "active 1,234: **NO**" in page.row_part(record(found))


def test_the_page_keeps_its_prose_and_a_row_without_a_place_gets_one(tmp_path):
    text = "# Speed\n\n<!-- bench summary -->\n<!-- end -->\n\n<!-- bench old -->\nstale\n<!-- end -->\n\nProse \\1.\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    for name, seconds in (("old", 2.0), ("new", 3.0)):
        content = record(summary({"peer": Aim(faster=1)}, gemlens=[1.0], peer=[seconds]))
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "peers_equal.json").write_text('{"checks": []}', encoding="utf-8")
    for _ in range(2):
        page.update(tmp_path / "page.md", tmp_path)
        written = (tmp_path / "page.md").read_text("utf-8")
        assert written.startswith("# Speed\n") and "Prose \\1.\n" in written and "stale" not in written
        assert written.count("2.00 × as fast") == 2 * written.count("<!-- bench old -->") == 2  # its own, the summary's
        assert written.count("## new") == written.count("<!-- bench new -->") == 1
        assert "checks" not in written


def test_sides_take_turns_with_one_seed_a_repetition(monkeypatch):
    calls = []

    def child(row, case, side, seed):
        calls.append((side, seed))
        return run(1.0) if side != "same" else {"holds": True}

    monkeypatch.setattr(bench, "child", child)
    both = Case("512 tokens", {"gemlens": Work, "peer": Work}, same=lambda _: {})
    found = bench.run_case("row", both, 7, 3)
    turns = [("gemlens", 7), ("peer", 7), ("peer", 8), ("gemlens", 8), ("gemlens", 9), ("peer", 9)]
    assert calls == [*turns, ("same", 7)]
    assert [each["seed"] for each in found["sides"]["peer"]["runs"]] == [7, 8, 9]
    assert found["same"] == {"holds": True}


@pytest.mark.parametrize(("absent", "left"), [("gemlens", None), ("peer", ["gemlens"])])
def test_a_side_that_cannot_run_is_left_out_and_without_ours_the_case(monkeypatch, capsys, absent, left):
    monkeypatch.setattr(bench, "child", lambda row, case, side, seed: {"absent": "why"} if side == absent else run(1.0))
    found = bench.run_case("row", Case("512 tokens", {"gemlens": Work, "peer": Work}), 0, 3)
    assert (found and list(found["sides"])) == left
    assert f"{absent} is left out: why" in capsys.readouterr().out


def test_a_child_warms_up_apart_from_what_it_times():
    seen = []
    tensor = torch.zeros(1000)
    work = Work(lambda given: seen.append(given) or tensor, [1, 2, 3], 0, [tensor], lambda out: {"n": len(out)})
    found = measure(work)
    assert seen == [0, 1, 2, 3] and len(found["each"]) == 3
    assert sorted(found["each"])[1] == found["seconds"]
    assert found["tensor_bytes"] == 4000 and found["facts"] == {"n": 1000}


def test_tensors_are_counted_once_wherever_they_are():
    weight, other = torch.zeros(10, 10), torch.zeros(5)
    layer = torch.nn.Linear(4, 4)
    assert bytes_of([weight, {"a": weight, "b": (other,)}], weight.numpy()) == 420
    assert bytes_of(layer, layer) == 80
    assert bytes_of(Aim(faster=2), None, "text") == 0
    sae = random_sae(tiny_gemma(), "resid_post.2")
    assert bytes_of(sae, sae, weight) == sae.nbytes + 400


def test_the_peak_is_what_the_work_took():
    held, before = torch.ones(4_000_000), torch.ones(40_000_000)
    del before
    peak = Peak()
    work = torch.ones(8_000_000)
    del work
    above = peak.above()
    if above is None:
        pytest.skip("this system does not tell a process its peak")
    assert 30e6 < above < 60e6 and len(held)


def test_every_row_has_cases_that_fit_the_harness():
    names = sorted(path.stem for path in (bench.HERE / "rows").glob("[!_]*.py"))
    for name in names:
        assert importlib.import_module(f"rows.{name}").__doc__
        assert cases(name), name
        assert len({each.name for each in cases(name)}) == len(cases(name))
        for each in cases(name):
            assert each.sides and set(each.aims) <= set(each.sides)
    places = page.PAGE.read_text("utf-8")
    assert [name for name in names if f"<!-- bench {name} -->" not in places] == []


def test_an_unknown_row_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.py", "encoode"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no row is called encoode; there are analyze, " in capsys.readouterr().err


def test_absent_is_told_to_the_parent(monkeypatch, capsys):
    import child

    def side(seed):
        raise Absent("no such function")

    monkeypatch.setattr(child, "cases", lambda row: [Case("a", {"gemlens": side})])
    monkeypatch.setattr("sys.argv", ["child.py", "row", "a", "gemlens", "1"])
    child.main()
    assert json.loads(capsys.readouterr().out) == {"absent": "no such function"}
