"""``gemlens attribute`` and ``gemlens lens``: what they write, and what they refuse in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from cli_helpers import ID, assert_refused, everything_in, make_world, run
from gemlens.scope.examples import write_examples

UPPER = "resid_post/layer_5_width_40_l0_small"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def attribute(capsys, world, *more, prompt="hello", sae_id=ID):
    names = ["--model-id", world.model, "--sae-release", world.release, "--sae-id", sae_id]
    return run(capsys, "attribute", *names, *([] if prompt is None else ["--prompt", prompt]), *more)


def lens(capsys, world, *more):
    return run(capsys, "lens", *more, "--model-id", world.model, "--sae-release", world.release)


def test_a_table_and_all_reports(capsys, world):
    kinds = [word for kind in ("html", "json", "jsonl") for word in ("--export", kind)]
    ran = attribute(capsys, world, "--target", "a", "--verify", 4, "--top-k", 5, *kinds)
    assert ran.code == 0, ran.err
    assert "logit of 'a' after token" in ran.out and "4 features removed" in ran.out
    assert everything_in(Path("outputs")) == ["attribution.html", "attribution.json", "attribution.jsonl"]
    found = json.loads(Path("outputs/attribution.json").read_text("utf-8"))
    assert found["method"] == "gradient x activation" and len(found["removed"]) == 4
    assert found["effects"][0]["dictionary"]["id"] == "layer_2_width_40_l0_small"


@pytest.mark.parametrize(
    ("options", "method", "target"),
    [
        (["--target", "a", "--minus", "b"], "gradient x activation", "logit of 'a' minus 'b'"),
        (["--target", "a", "--log-prob", "--method", "ablation"], "ablation", "log-probability of 'a'"),
        (["--loss", "--method", "integrated", "--steps", 8], "integrated gradients, 8 steps", "mean cross-entropy"),
        (["--target", "a", "--method", "direct", "--position", 3], "direct effect", "logit of 'a' after token 3"),
        (["--target-feature", 7, "--target-sae-id", UPPER], "gradient x activation", "feature 7 of resid_post.5"),
    ],
)
def test_every_target_and_method(capsys, world, options, method, target):
    ran = attribute(capsys, world, *options, "--export", "json")
    assert ran.code == 0, ran.err
    found = json.loads(Path("outputs/attribution.json").read_text("utf-8"))
    assert found["method"] == method and found["target"].startswith(target)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no target was given", "--target ' Paris'"]),
        (["--target", "a", "--loss"], ["--target and --loss are two targets"]),
        (["--loss", "--minus", "a"], ["--minus needs a token with --target"]),
        (["--target", "a", "--minus", "b", "--log-prob"], ["leave --log-prob out"]),
        (["--target-feature", "3"], ["--target-sae-id"]),
        (["--target", "a", "--target-sae-id", UPPER], ["--target-feature"]),
        (["--target-feature", "-3", "--target-sae-id", UPPER], ["start at 0"]),
        (["--loss", "--position", "2"], ["a loss is of the whole prompt"]),
        (["--target", "hi"], ["not one token", "'h', 'i'"]),
        (["--target", ""], ["the target is empty"]),
        (["--target", "a", "--position", "99"], ["position 99 does not exist", "0 to"]),
        (["--target-feature", "99", "--target-sae-id", UPPER], ["feature 99 does not exist", "0 to 39"]),
        (["--target", "a", "--steps", "2"], ["--steps 2", "5 or more"]),
        (["--target", "a", "--verify", "-1"], ["--verify -1"]),
        (["--target", "a", "--top-k", "0"], ["--top-k 0"]),
        (["--target", "a", "--method", "guess"], ["--method", "gradient"]),
        (["--target", "a", "--export", "parquet"], ["--export", "html"]),
    ],
)
def test_mistakes_are_one_line(capsys, world, options, words):
    assert_refused(attribute(capsys, world, *options, "--out-dir", "out"), *words)
    assert not Path("out").exists()


def test_a_prompt_and_a_dictionary_that_fit_are_needed(capsys, world):
    assert_refused(attribute(capsys, world, "--target", "a", prompt=None), "no prompt was given")
    assert_refused(attribute(capsys, world, "--target", "a", prompt=" "), "the prompt is empty")
    lower = ["--target-feature", 7, "--target-sae-id", ID]
    assert_refused(attribute(capsys, world, *lower, sae_id=UPPER), "resid_post.5", "behind resid_post.2")


def test_mistakes_are_found_before_torch_is_imported(tmp_path):
    from cli_helpers import spawn

    code = (
        "import sys\nfrom gemlens.app.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments in (["attribute", "--prompt", "a"], ["lens"], ["lens", "-1"], ["attribute", "--help"]):
        assert spawn(*arguments, code=code).err.endswith("False\n"), arguments


# The lens


def test_features_through_the_lens(capsys, world):
    ran = lens(capsys, world, 4, 9, "--sae-id", ID, "--top-k", 3, "--export", "json", "--export", "html")
    assert ran.code == 0, ran.err
    found = json.loads(Path("outputs/lens.json").read_text("utf-8"))
    assert [each["feature"] for each in found["features"]] == [4, 9]
    assert len(found["features"][0]["top"]) == 3 and found["agreement"] is None
    assert "what its rows at resid_post.2 add to the logits" in " ".join(ran.out.split())


def test_agreement_with_what_lies_beside_the_dictionary(capsys, world):
    file = world.release / ID / "examples.safetensors"
    ran = lens(capsys, world, 4, "--sae-id", ID, "--export", "json")
    assert ran.code == 0, ran.err
    ours = json.loads(Path("outputs/lens.json").read_text("utf-8"))["features"][0]["top"]
    top = torch.zeros(40, 10, dtype=torch.int32)
    top[4] = torch.tensor([token["token_id"] for token in ours])
    top[4, 8:] = torch.tensor([0, 1])
    slots = {name: torch.zeros(40, 1) for name in ("activations", "positions", "seq_ids")}
    tensors = slots | {"feature_frequencies": torch.zeros(40), "tokens": torch.zeros(1, 4), "top_tokens": top}
    write_examples(file, tensors, about={})
    try:
        assert "80 % of the top tokens that came with it" in " ".join(
            lens(capsys, world, 4, "--sae-id", ID).out.split()
        )
        file.write_bytes(b"no tensors")
        damaged = lens(capsys, world, 4, "--sae-id", ID)
        assert damaged.code == 0 and "came with it" not in damaged.out
    finally:
        file.unlink()


def test_layers_through_the_lens(capsys, world):
    ran = lens(capsys, world, "--prompt", "hello", "--position", 3, "--export", "jsonl", "--export", "html")
    assert ran.code == 0, ran.err
    assert "What each layer predicts after" in ran.out and "token 3" in ran.out
    rows = [json.loads(line) for line in Path("outputs/lens.jsonl").read_text("utf-8").splitlines()]
    assert {row["layer"] for row in rows} == set(range(7)) and len(rows[0]["top"]) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no feature is named", "gemlens lens 1234"]),
        ([4, "--prompt", "a"], ["two lenses"]),
        ([99, "--sae-id", ID], ["feature 99 does not exist", "0 to 39"]),
        ([4, "--top-k", 0], ["--top-k 0"]),
        (["x"], ["x"]),
        (["--prompt", "a", "--position", 99], ["--position 99 does not exist"]),
        ([4, "--sae-id", ID, "--top-k", 9999], ["top_k 9999", "1 to 367"]),
    ],
)
def test_mistakes_of_the_lens_are_one_line(capsys, world, options, words):
    assert_refused(lens(capsys, world, *options, "--out-dir", "out"), *words)


def test_the_example_runs(starter, capsys):
    path = Path(__file__).parents[1] / "examples" / "attribution.py"
    spec = importlib.util.spec_from_file_location("example_attribution", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main()
    out = capsys.readouterr().out
    assert "logit of ' Paris' after token 5" in out
    assert float(out.rsplit("correlation ", 1)[1]) > 0.8
