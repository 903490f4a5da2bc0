"""``gemlens fidelity --sweep``: what a release lists, the Pareto front, the plot, and what to try next."""

import dataclasses
import gc
import json
import weakref
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from cli_helpers import ROOM, add_dictionary, assert_refused, everything_in, run
from fake_hub import FakeHub, connected
from gemlens.errors import InputError, NetworkError, NotFoundError, WeightsError
from gemlens.records import Sweep, width_name
from gemlens.report.pareto import to_svg
from gemlens.report.sweep import render, to_json
from gemlens.scope.listing import Listed, at_site, listing
from gemlens.study.fidelity import fidelity
from gemlens.study.sweep import front, sweep
from gemlens.study.verdict import is_poor, suggest
from tiny import files_below, published_config, random_sae, random_tensors, tiny_model_folder, write_dictionary

TEXT = "the cat and the dog sat in the sun, and nobody in the street said anything to them about the rain. " * 40
SCOPE = "google/gemma-scope-2-270m-it"
NAMES = {
    "resid_post/layer_2_width_40_l0_small": 40,
    "resid_post/layer_2_width_40_l0_big": 40,
    "resid_post/layer_2_width_80_l0_small": 80,
    "resid_post_all/layer_2_width_80_l0_big": 80,
}


def write_release(root: Path) -> Path:
    """Four dictionaries of layer 2; larger thresholds make the small ones sparse."""
    for seed, (name, width) in enumerate(NAMES.items()):
        tensors = random_tensors(16, width, seed=seed)
        tensors["threshold"] += 30.0 if "small" in name else 0.0
        write_dictionary(root / name, tensors, published_config(2, width, l0=10))
    add_dictionary(root, "resid_post/layer_5_width_40_l0_small", layer=5)
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("scope"))


# Names


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        ("resid_post/layer_12_width_65k_l0_medium", ("resid_post", 12, 65536, "medium")),
        ("resid_post_all/layer_0_width_1m_l0_big", ("resid_post", 0, 1048576, "big")),
        ("transcoder/layer_5_width_262k_l0_small_affine", ("mlp_in", 5, 262144, "small")),
        ("attn_out/layer_5_width_16k_l0_small", ("attn_out", 5, 16384, "small")),
        ("notes/layer_12", (None, 12, None, None)),
        ("notes/mine", (None, None, None, None)),
    ],
)
def test_names_of_gemma_scope_2_say_what_they_are(tmp_path, path, listed):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "params.safetensors").touch()
    assert listing(str(tmp_path)) == [Listed(path, *listed)]


@pytest.mark.parametrize(
    ("repo", "site"),
    [
        ("gemma-scope-9b-pt-res", "resid_post"),
        ("gemma-scope-2b-pt-att", "attn_out"),
        ("gemma-scope-2b-pt-mlp", "mlp_out"),
    ],
)
def test_names_of_gemma_scope_1_take_their_site_from_the_repository(hub_home, repo, site):
    paths = [f"layer_20/width_131k/average_l0_{l0}/params.npz" for l0 in (114, 13, 24)]
    with FakeHub({f"google/{repo}": dict.fromkeys(paths, b"")}) as hub, connected(hub.url, home=hub_home):
        found = listing(f"google/{repo}")
    assert [(each.site, each.layer, each.width, each.l0) for each in found] == [
        (site, 20, 131072, "13"), (site, 20, 131072, "24"), (site, 20, 131072, "114"),
    ]  # fmt: skip


def test_a_config_in_a_folder_knows_better_than_the_name(tmp_path):
    write_dictionary(tmp_path / "mine", random_tensors(16, 24), published_config(4, 24, l0=7))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "params.safetensors").touch()
    (tmp_path / "damaged" / "config.json").write_text("{")
    assert listing(str(tmp_path)) == [
        Listed("mine", "resid_post", 4, 24, "7"),
        Listed("damaged", None, None, None, None),
    ]


def test_the_starter_lists_its_dictionary():
    assert Listed("resid_post/layer_12_width_4k_l0_medium", "resid_post", 12, 4096, "medium") in listing("starter")


def test_a_hub_and_a_folder_list_the_same(release, hub_home):
    with FakeHub({SCOPE: files_below(release)}) as hub, connected(hub.url, home=hub_home):
        assert listing(SCOPE) == listing(str(release))
        assert hub.bytes_of("") == 0


def test_saelens_names_and_hubs_that_cannot_be_reached_are_listed_from_the_catalogue(hub_home):
    found = at_site(listing("gemma-scope-2-270m-it-res"), "resid_post", layer=12)
    assert Listed("resid_post/layer_12_width_16k_l0_small", "resid_post", 12, 16384, "small") in found
    assert {each.width for each in found} == {16384, 65536, 262144, 1048576}
    ones = listing("gemma-scope-2b-pt-res-canonical")
    assert {each.site for each in ones if each.path.startswith("layer_20/")} == {"resid_post"}
    assert len({each.path for each in ones}) == len(ones)
    with FakeHub({}) as hub, connected(hub.url, home=hub_home, offline=True):
        offline = listing(SCOPE)
        assert set(found) <= set(offline)
        with pytest.raises(NetworkError):
            listing("somebody/elses")


def test_releases_without_dictionaries_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match="holds no dictionary"):
        listing(str(tmp_path))
    with pytest.raises(NotFoundError, match="neither a folder nor"):
        listing("no such thing")


def test_one_site_is_chosen_and_slips_are_named(release):
    found = listing(str(release))
    assert len(found) == 5
    assert {each.path for each in at_site(found, "resid_post", layer=2)} == set(NAMES)
    assert [each.layer for each in at_site(found, "resid_post", layer=5)] == [5]
    only = at_site(found, "resid_post", layer=2, category="resid_post_all")
    assert [each.path for each in only] == ["resid_post_all/layer_2_width_80_l0_big"]
    assert at_site(only, "resid_post") == only
    with pytest.raises(InputError, match="layers 2, 5"):
        at_site(found, "resid_post")
    with pytest.raises(NotFoundError, match="layer 3; there are layers 2, 5"):
        at_site(found, "resid_post", layer=3)
    with pytest.raises(NotFoundError, match="mlp_out; there is resid_post"):
        at_site(found, "mlp_out")
    with pytest.raises(NotFoundError, match="resid_pots; did you mean resid_post"):
        at_site(found, "resid_post", category="resid_pots")


# Measuring


def test_the_front_holds_what_no_other_beats():
    assert front([(10, 0.5), (20, 0.4), (20, 0.3), (30, 0.3), (40, 0.1), (5, 0.9)]) == [
        True, False, True, False, True, True,
    ]  # fmt: skip
    assert front([(10, 0.5), (10, 0.5)]) == [True, True]
    assert front([(1, 1)]) == [True]


@pytest.mark.parametrize(("held", "together"), [(0, [0, 0, 0, 0]), (10_000, [0, 1, 0, 0]), (1 << 30, [0, 1, 2, 3])])
def test_a_sweep_measures_each_as_alone_and_holds_no_more_than_it_should(model, release, monkeypatch, held, together):
    import gemlens.study.many as module

    real, alive, found_alive = module.load_sae, [], []

    def load(*arguments, **settings):
        gc.collect()
        found_alive.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(sae := real(*arguments, **settings)))
        return sae

    monkeypatch.setattr(module, "load_sae", load)
    monkeypatch.setattr(module, "HELD_BYTES", held)
    found = at_site(listing(str(release)), "resid_post", layer=2)
    told = []
    result = sweep(model, str(release), found, lambda: [TEXT], report=lambda which, *rest: told.append((which, *rest)))
    assert found_alive == together
    assert {each for which, _, _ in told for each in which} == set(found)
    assert all(done <= total for _, done, total in told)
    assert result.site == "resid_post.2"
    assert [(p.figures.dictionary.width, p.figures.l0) for p in result.points] == sorted(
        (p.figures.dictionary.width, p.figures.l0) for p in result.points
    )
    for point in result.points:
        alone = fidelity(model, real(str(release), point.figures.dictionary.path), [TEXT])
        assert dataclasses.replace(point.figures, verdict=alone.verdict) == alone
    expected = front([(p.figures.l0, p.figures.spliced.above_clean) for p in result.points])
    assert [p.on_front for p in result.points] == expected
    assert {p.l0_named for p in result.points} == {"small", "big"}


def test_one_damaged_dictionary_does_not_cost_the_others(model, tmp_path):
    write_release(tmp_path)
    bad = tmp_path / "resid_post/layer_2_width_40_l0_big/params.safetensors"
    bad.write_bytes(bad.read_bytes()[:-9])
    found = at_site(listing(str(tmp_path)), "resid_post", layer=2)
    result = sweep(model, str(tmp_path), found, lambda: [TEXT])
    assert len(result.points) == 3
    assert [path for path, _ in result.failed] == ["resid_post/layer_2_width_40_l0_big"]
    only_bad = [each for each in found if each.path == result.failed[0][0]]
    with pytest.raises(WeightsError, match="truncated or damaged"):
        sweep(model, str(tmp_path), only_bad, lambda: [TEXT])
    with pytest.raises(InputError, match="rows of 128"):
        sweep(model, str(tmp_path), found, lambda: ["short"])
    with pytest.raises(InputError, match="no dictionary"):
        sweep(model, str(tmp_path), [], lambda: [TEXT])


# What to try next


def names(*paths, site="resid_post", layer=12):
    """Entries as ``listing`` would make them."""
    widths = {"16k": 16384, "65k": 65536, "262k": 262144}
    return [
        Listed(path, site, layer, widths[path.split("_width_")[1].split("_")[0]], path.rpartition("_l0_")[2])
        for path in paths
    ]


def figures_of(model, path, **changes):
    made = fidelity(model, random_sae(model, "resid_post.2", path=path, release="google/x"), [TEXT])
    poor = {
        "variance_explained": 0.4, "l0": 9.0,
        "spliced": dataclasses.replace(made.spliced, above_clean=1.0),
        "zeroed": dataclasses.replace(made.zeroed, above_clean=5.0),
        "mean_ablated": dataclasses.replace(made.mean_ablated, above_clean=2.0),
    }  # fmt: skip
    return dataclasses.replace(made, verdict=("poor",), **poor | changes)


BASE = "resid_post/layer_12_width_16k_l0_small"


@pytest.mark.parametrize(
    ("siblings", "said"),
    [
        (
            ["16k_l0_big", "16k_l0_medium", "65k_l0_small", "65k_l0_big", "262k_l0_small"],
            "next to try: resid_post/layer_12_width_16k_l0_medium (higher L0) or "
            "resid_post/layer_12_width_65k_l0_small (wider)",
        ),
        (["262k_l0_big", "262k_l0_small"], "next to try: resid_post/layer_12_width_262k_l0_small (wider)"),
        (["16k_l0_100", "16k_l0_9"], "next to try: resid_post/layer_12_width_16k_l0_100 (higher L0)"),
        ([], "google/x names none for resid_post.12 that is wider or of higher L0"),
    ],
)
def test_a_poor_verdict_names_the_next_to_try(model, siblings, said):
    figures = figures_of(model, BASE)
    listed = names(BASE, *(f"resid_post/layer_12_width_{each}" for each in siblings))
    others = [
        *names("resid_post_all/layer_12_width_16k_l0_big"),
        *names("resid_post/layer_7_width_16k_l0_big", layer=7),
    ]
    assert suggest(figures, [*listed, *others]).verdict == ("poor", said)


def test_only_a_poor_verdict_is_followed_by_a_suggestion(model):
    siblings = names(BASE, "resid_post/layer_12_width_65k_l0_small")
    good = figures_of(model, BASE)
    good = dataclasses.replace(good, spliced=dataclasses.replace(good.spliced, above_clean=0.1))
    wrong = figures_of(model, BASE, variance_explained=-1.0)  # wider would not help
    for figures in (good, wrong):
        assert not is_poor(figures)
        assert suggest(figures, siblings) == figures
    elsewhere = figures_of(model, "somewhere/else")
    assert suggest(elsewhere, siblings) == elsewhere


# Views


@pytest.fixture(scope="module")
def measured(release):
    from tiny import tiny_gemma

    found = at_site(listing(str(release)), "resid_post", layer=2)
    return sweep(tiny_gemma(), str(release), found, lambda: [TEXT])


def test_json_holds_the_figures_and_the_front(measured):
    record = json.loads(to_json(measured))
    assert (record["schema_version"], record["site"]) == (1, "resid_post.2")
    for row, point in zip(record["points"], measured.points, strict=True):
        assert row["on_front"] == point.on_front
        assert row["l0_named"] == point.l0_named
        assert row["spliced"]["above_clean"] == point.figures.spliced.above_clean
        assert row["ce_recovered_mean"] == point.figures.ce_recovered_mean


def test_the_table_fits_80_columns_and_marks_the_front(measured):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    render(measured, console)
    text = console.export_text()
    assert max(map(len, text.splitlines()[3:])) <= 100
    lines = [line for line in text.splitlines() if "±" in line]
    assert [line.startswith("*") for line in lines] == [point.on_front for point in measured.points]
    for point in measured.points:
        assert (f"  {point.figures.dictionary.path}" in text.splitlines()) == point.on_front


def test_names_that_do_not_tell_dictionaries_apart_bring_their_paths(measured):
    twice = dataclasses.replace(measured, points=(*measured.points, measured.points[0]))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    render(twice, console)
    assert "resid_post_all/layer_2_width_80_l0_big" in console.export_text()


def svg_parts(svg, kind):
    return [each for each in ET.fromstring(svg).iter() if each.get("class", "").split(" ")[0] == kind]


def test_the_plot_shows_every_dictionary_where_it_belongs(measured):
    svg = to_svg(measured)
    circles = svg_parts(svg, "point")
    drawn = {
        circle[0].text.split(":")[0]: (float(circle.get("cx")), float(circle.get("cy")), circle.get("class"))
        for circle in circles
    }
    assert set(drawn) == set(NAMES)
    points = {point.figures.dictionary.path: point for point in measured.points}
    assert sorted(drawn, key=lambda path: drawn[path][0]) == sorted(drawn, key=lambda path: points[path].figures.l0)
    costs = sorted(drawn, key=lambda path: points[path].figures.spliced.above_clean)
    assert sorted(drawn, key=lambda path: -drawn[path][1]) == costs
    assert {path for path in drawn if "beaten" not in drawn[path][2]} == {p for p in points if points[p].on_front}
    for x, y, _ in drawn.values():
        assert 0 < x < 720
        assert 0 < y < 460
    assert len(svg_parts(svg, "width")) == 2
    assert "prefers-color-scheme: dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("keep", [1, 2])
def test_few_points_and_hostile_names_still_make_a_picture(measured, keep):
    few: Sweep = dataclasses.replace(
        measured, points=measured.points[:keep], release="</svg><script>1</script>\x00\ud800", model_id='"&<'
    )
    svg = to_svg(few)
    svg.encode()
    assert len(svg_parts(svg, "point")) == keep
    assert "nan" not in svg
    assert "<script" not in svg


def test_widths_are_named_as_dictionaries_are():
    assert [width_name(n) for n in (40, 4096, 16384, 65536, 131072, 262144, 1048576)] == [
        "40", "4k", "16k", "65k", "131k", "262k", "1m",
    ]  # fmt: skip


# The command


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "gemma-3-270m-it", **ROOM)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("text.txt").write_text(TEXT)
    return folder


def arguments(model, release, *more):
    return ["fidelity", "--sweep", "--model-id", model, "--sae-release", release, "--texts", "text.txt", *more]


def test_the_command_writes_table_json_and_plot(capsys, tiny_folder, release, elsewhere, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    files = ["--export", "new/sweep.json", "--plot", "new/sweep.svg"]
    ran = run(capsys, *arguments(tiny_folder, release, "--site", "resid_post", "--layer", 2, *files))
    assert ran.code == 0, ran.err
    assert ran.out.count("±") == 4
    assert "wrote new/sweep.json" in ran.err
    assert everything_in(Path("new")) == ["sweep.json", "sweep.svg"]
    record = json.loads(Path("new/sweep.json").read_text())
    assert {row["dictionary"]["path"] for row in record["points"]} == set(NAMES)
    ET.parse("new/sweep.svg")
    dotted = run(capsys, *arguments(tiny_folder, release, "--site", "resid_post.2"))
    assert dotted.out == ran.out
    only = run(capsys, *arguments(tiny_folder, release, "--layer", 2, "--sae-category", "resid_post_all"))
    assert only.out.count("±") == 1


def test_the_command_sweeps_over_a_hub(capsys, tiny_folder, release, elsewhere, hub_home):
    with FakeHub({SCOPE: files_below(release)}) as hub, connected(hub.url, home=hub_home):
        ran = run(capsys, *arguments(tiny_folder, SCOPE, "--layer", 2, "--export", "sweep.json"))
        assert ran.code == 0, ran.err
        assert hub.bytes_of("layer_5_width_40_l0_small/params.safetensors") == 0
    record = json.loads(Path("sweep.json").read_text())
    assert {row["dictionary"]["path"] for row in record["points"]} == set(NAMES)
    assert {row["dictionary"]["revision"] for row in record["points"]} == {hub[SCOPE].commit}


def test_what_could_not_be_measured_is_told_after_the_rest(capsys, tiny_folder, tmp_path, elsewhere):
    broken = write_release(tmp_path / "scope")
    (broken / "resid_post/layer_2_width_40_l0_big/params.safetensors").write_bytes(b"")
    ran = run(capsys, *arguments(tiny_folder, broken, "--layer", 2, "--export", "sweep.json"))
    assert ran.code == 2
    assert ran.out.count("±") == 3
    assert "1 of 4 dictionaries could not be measured" in ran.err.splitlines()[-1]
    assert len(json.loads(Path("sweep.json").read_text())["points"]) == 3


def test_a_poor_dictionary_of_a_folder_is_told_what_to_try(capsys, tiny_folder, release, elsewhere, monkeypatch):
    monkeypatch.setattr("gemlens.study.verdict.is_poor", lambda _figures: True)
    monkeypatch.setenv("COLUMNS", "300")
    path = "resid_post/layer_2_width_40_l0_small"
    ran = run(
        capsys,
        *arguments(tiny_folder, release, "--sae-id", path)[:1],
        *arguments(tiny_folder, release)[2:],
        "--sae-id",
        path,
    )
    assert ran.code == 0, ran.err
    assert "next to try: resid_post/layer_2_width_40_l0_big (higher L0)" in ran.out
    assert "resid_post/layer_2_width_80_l0_small (wider)" in ran.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ["layers 2, 5"]),
        (["--layer", "3"], ["layer 3", "2, 5"]),
        (["--site", "resid_pots"], ["resid_pots", "did you mean resid_post"]),
        (["--site", "resid_post.2", "--layer", "5"], ["--layer 5", "contradict"]),
        (["--layer", "2", "--sae-id", "x"], ["--sae-id x", "exclude"]),
        (["--layer", "2", "--plot", "a.gif"], ["--plot a.gif", ".svg"]),
        (["--layer", "2", "--export", "a.txt"], ["--export a.txt", ".json"]),
        (["--layer", "2", "--plot", "text.txt/a.svg"], ["text.txt"]),
    ],
)
def test_slips_are_told_in_one_line_before_anything_is_measured(
    capsys, tiny_folder, release, elsewhere, monkeypatch, more, words
):
    monkeypatch.setattr("gemlens.study.reconstruction.activations", lambda *_: pytest.fail("went on to measure"))
    assert_refused(run(capsys, *arguments(tiny_folder, release, *more)), *words)
    assert everything_in(elsewhere) == ["text.txt"]


def test_options_of_a_sweep_need_one(capsys, tiny_folder, release, elsewhere):
    without = [word for word in arguments(tiny_folder, release) if word != "--sweep"]
    for more in (["--plot", "a.svg"], ["--layer", 2], ["--site", "resid_post"]):
        assert_refused(run(capsys, *without, *more), str(more[0]), "--sweep")
