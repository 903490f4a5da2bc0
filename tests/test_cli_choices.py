"""``gemlens choices`` and ``gemlens contrast`` from the command line."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from cli_helpers import add_dictionary, assert_refused, everything_in, run
from tiny import tiny_model_folder

ROWS = [
    {"goal": f"{word} pan", "sol1": f"in the {word}", "sol2": f"and ten {word}s", "label": k % 2}
    for k, word in enumerate(["cat", "hot", "ice", "dry", "tin", "hat", "pin", "dot", "nap", "rat"])
]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model_folder(tmp_path / "gemma-3-270m-it", max_position_embeddings=256)
    for layer in (1, 2, 5):
        add_dictionary(tmp_path / "scope", f"resid_post/layer_{layer}_width_40_l0_small", layer=layer)
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return ["--model-id", "gemma-3-270m-it", "--sae-release", "scope"]


def files(*, but: str = "") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").iterdir() if but == "" or but not in path.name}


def test_every_layer_found_and_every_file_written(world, capsys):
    ran = run(
        capsys, "choices", "--dataset", "items.jsonl", *world, "--num-samples", "all", "--output-file", "out/x.json"
    )
    assert ran.code == 0, ran
    assert "10 items of items.jsonl" in ran.out and "acc_norm" in ran.out and "resid_post.5" in ran.out
    assert everything_in(Path("out")) == ["x.html", "x.json", "x.parquet", "x.run.json"]
    rows = json.loads(Path("out/x.json").read_text("utf-8"))
    assert list(rows[0]["positive_solution_details"]["active_features_by_layer"]) == ["1", "2", "5"]
    assert [row["example_id"] for row in rows] == list(range(10))


def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(world, capsys, monkeypatch):
    from gemlens.study import choice_gather

    monkeypatch.setattr(choice_gather, "_WINDOW_ITEMS", 4)
    command = ["choices", "--dataset", "items.jsonl", *world, "--num-samples", "9", "--cause", "1", "--draws", "2"]
    assert run(capsys, *command, "--output-file", "out/whole.json").code == 0
    whole = {name.replace("whole", "cut"): each for name, each in files(but=".run").items()}
    inner, calls = choice_gather.encode_texts, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(choice_gather, "encode_texts", dying)
    cut = run(capsys, *command, "--output-file", "out/cut.json")
    assert cut.code == 130
    assert not Path("out/cut.json").exists() and Path("out/.cut.parts/run.json").exists()
    calls.clear()
    monkeypatch.setattr(choice_gather, "encode_texts", lambda *a: calls.append(1) or inner(*a))
    assert run(capsys, *command, "--output-file", "out/cut.json").code == 0
    assert len(calls) == 9 - 4
    assert not Path("out/.cut.parts").exists()
    found = {name: each for name, each in files(but=".run").items() if name.startswith("cut")}
    assert found == {name: each for name, each in whole.items() if name.startswith("cut")}


def test_the_seeds_script_takes_its_options(world, capsys, monkeypatch):
    script = Path(__file__).parents[1] / "examples/run_sae_feature_extraction_all_layers.py"
    options = ["--num-samples", "4", "--top-k", "2", "--output-file", "results.json"]
    monkeypatch.setattr(sys, "argv", [str(script), *options, *world, "--dataset", "items.jsonl"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0
    rows = json.loads(Path("results.json").read_text("utf-8"))
    assert len(rows) == 4
    assert all(len(each) <= 2 for each in rows[0]["positive_solution_details"]["active_features_by_layer"].values())


def test_its_defaults_are_the_seeds():
    import inspect

    from gemlens.app.choices import choices
    from gemlens.app.choices_options import release_of

    given = {name: each.default for name, each in inspect.signature(choices).parameters.items()}
    assert (given["dataset"], given["num_samples"], given["top_k"]) == ("piqa", "50", 100)
    assert str(given["output_file"]) == "piqa_sae_top100_all_layers.json"
    assert given["model_id"] == "google/gemma-2-2b"
    assert release_of("google/gemma-2-2b", None) == "google/gemma-scope-2b-pt-res"
    assert release_of("starter", None) == "starter"


def test_two_files_of_texts(world, capsys):
    Path("a.txt").write_text("\n".join(f"cat {k}" for k in range(12)), encoding="utf-8")
    Path("b.txt").write_text("\n".join(f"the {k}" for k in range(13)), encoding="utf-8")
    ran = run(
        capsys, "contrast", "--a", "a.txt", "--b", "b.txt", *world, "--output-file", "out/c.json", "--export", "html"
    )
    assert ran.code == 0, ran
    assert "12 pairs of a.txt against b.txt" in ran.out and "has no partner" in ran.out and "acc" not in ran.out
    assert everything_in(Path("out")) == ["c.html", "c.json", "c.run.json"]
    assert json.loads(Path("out/c.json").read_text("utf-8"))[0]["positive_solution_details"]["text"].startswith("cat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "nothing.jsonl"], ["nothing.jsonl does not exist", "builtin"]),
        (["--num-samples", "0"], ["--num-samples 0"]),
        (["--num-samples", "some"], ["--num-samples some"]),
        (["--top-k", "0"], ["--top-k 0"]),
        (["--cause", "-1"], ["--cause -1"]),
        (["--draws", "0"], ["--draws 0"]),
        (["--output-file", "x.txt"], ["name a .json file"]),
        (["--layers", "a"], ["--layers a", "0-5,12"]),
        (["--layers", "3"], ["at layer 3", "1, 2, 5"]),
        (["--sites", "resid"], ["no site is called 'resid'"]),
        (["--sites", ","], ["--sites is empty"]),
        (["--sites", "mlp_out"], ["that reads mlp_out"]),
        (["--width", "wide"], ["--width wide"]),
        (["--l0", "few"], ["--l0 few"]),
        (["--fields", "question=a"], ["--fields question=a", "all three"]),
        (["--labels", "none.lst"], ["none.lst does not exist"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--token", "first"], ["first"]),
    ],
)
def test_slips_are_said_in_one_line(world, capsys, options, words):
    ran = run(capsys, "choices", *world, *([] if "--dataset" in options else ["--dataset", "items.jsonl"]), *options)
    assert_refused(ran, *words)
    assert not Path("piqa_sae_top100_all_layers.json").exists()


def test_a_release_that_is_not_there(world, capsys):
    assert_refused(run(capsys, "choices", "--dataset", "items.jsonl", "--sae-release", "nope"), "nope")


def test_help_and_options_need_no_torch():
    from cli_helpers import spawn

    code = "import sys\nfrom gemlens.app.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    ran = spawn("choices", "--dataset", "builtin", "--model-id", "starter", "--layers", "x", code=code)
    assert ran.code == 2 and ran.out.strip() == "False"
