"""``gemlens ablate`` and ``gemlens steer``: what they print and write, and what they refuse in one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from cli_helpers import ID, assert_refused, make_world, run

TEXT = "the hat and the cat sang in the sun"
FEATURE = "5"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"))
    folder = made.release / ID
    most = {"max_activation": torch.full((40,), 3.0), "tokens_active": torch.ones(40, dtype=torch.int64)}
    most["max_activation"][7] = 0.0
    save_file(most, folder / "max_activation.safetensors")
    save_file({"v": torch.ones(16)}, made.model.parent / "v.safetensors")
    save_file({"v": torch.ones(15), "w": torch.ones(16)}, made.model.parent / "two.safetensors")
    return made


def arguments(world, command, *more, sae_id=ID):
    names = ["--model-id", world.model, "--sae-release", world.release, "--sae-id", sae_id]
    return [command, *map(str, names), "--prompt", TEXT, "--no-chat", *map(str, more)]


def test_steer_prints_answers_side_by_side_and_writes_reports(world, tmp_path, capsys):
    exports = [part for kind in ("html", "json", "jsonl") for part in ("--export", kind)]
    more = ["--features", FEATURE, "--sweep", "-1..2", "--max-new-tokens", 6, *exports, "--out-dir", tmp_path]
    ran = run(capsys, *arguments(world, "steer", *more))
    assert ran.code == 0, ran
    for word in ("strength", "perplexity", "KL", "feature 5 of layer_2_width_40_l0_small", "maximum activations"):
        assert word in " ".join(ran.out.split())
    record = json.loads((tmp_path / "steering.json").read_text("utf-8"))
    assert [dose["strength"] for dose in record["doses"]] == [-1, 0, 1, 2]
    assert (record["features"], record["relative_to"], record["maxima"]) == ([5], "max", [3.0])
    assert record["doses"][1]["kl"] == 0 and record["doses"][3]["kl"] > 0
    assert all(dose["text"] == "".join(each["text"] for each in dose["tokens"]) for dose in record["doses"])
    rows = [json.loads(row) for row in (tmp_path / "steering.jsonl").read_text("utf-8").splitlines()]
    assert [row["perplexity"] for row in rows] == [dose["perplexity"] for dose in record["doses"]]
    page = (tmp_path / "steering.html").read_text("utf-8")
    assert page.count('class="panel dose') == 4 and "default-src" in page and "<svg" in page


@pytest.mark.parametrize(
    ("options", "strengths"),
    [
        (["--strength", "0.5"], [0, 0.5]),
        (["--sweep", "-1..1/0.5"], [-1, -0.5, 0, 0.5, 1]),
        (["--sweep", "2,-1"], [-1, 0, 2]),
        (["--strength", "2", "--mode", "scale"], [1, 2]),
        (["--strength", "40", "--relative-to", "none", "--positions", "-1:"], [0, 40]),
        (["--strength", "0.1", "--relative-to", "norm", "--mode", "orthogonal"], [0, 0.1]),
        (["--strength", "1", "--maximum", "9", "--where", "3>0.5", "--positions", "generated"], [0, 1]),
    ],
)
def test_strengths_modes_and_units(options, strengths, world, tmp_path, capsys):
    more = ["--features", FEATURE, "--max-new-tokens", 3, *options, "--export", "json", "--out-dir", tmp_path]
    ran = run(capsys, *arguments(world, "steer", *more))
    assert ran.code == 0, ran
    record = json.loads((tmp_path / "steering.json").read_text("utf-8"))
    assert [dose["strength"] for dose in record["doses"]] == strengths


def test_a_direction_from_a_file(world, capsys):
    file = world.model.parent / "v.safetensors"
    more = ["--direction", file, "--site", "resid_post.2", "--strength", 3, "--max-new-tokens", 3, "--prompt", TEXT]
    ran = run(capsys, "steer", "--model-id", world.model, *more)
    assert ran.code == 0, ran
    assert "v.safetensors at resid_post.2" in ran.out


def test_ablate_prints_each_feature_and_what_comes_next(world, tmp_path, capsys):
    exports = [part for kind in ("html", "json", "jsonl") for part in ("--export", kind)]
    features = ",".join(map(str, range(8)))
    more = ["--features", features, "--max-new-tokens", 4, *exports, "--out-dir", tmp_path]
    ran = run(capsys, *arguments(world, "ablate", *more))
    assert ran.code == 0, ran
    assert "without 8 features together: KL" in ran.out and "next token" in ran.out
    record = json.loads((tmp_path / "ablation.json").read_text("utf-8"))
    assert [each["feature_id"] for each in record["features"]] == list(range(8))
    assert record["kl"] > 0 and not record["tokens"][0]["edited"] and record["tokens"][1]["edited"]
    assert len((tmp_path / "ablation.jsonl").read_text("utf-8").splitlines()) == 8
    silent = [each for each in record["features"] if each["position"] is None]
    assert all(each["kl"] == each["loss_change"] == each["max_activation"] == 0 for each in silent)
    assert "Each feature alone" in (tmp_path / "ablation.html").read_text("utf-8")


def test_ablate_takes_features_of_several_dictionaries_by_their_site(world, capsys):
    other = "resid_post/layer_5_width_40_l0_small"
    more = ["--sae-id", other, "--features", "resid_post.2:3,4", "--features", "resid_post.5:9"]
    ran = run(capsys, *arguments(world, "ablate", *more))
    assert ran.code == 0, ran
    assert "without 3 features together" in ran.out and "resid_post.5" in ran.out


STEER = ["--features", FEATURE, "--strength", "1"]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("ablate", [], ["no feature was given", "--features"]),
        ("ablate", ["--features", "3,x"], ["--features '3,x': write features as 1634,99"]),
        ("ablate", ["--features", "-3"], ["--features '-3'"]),
        ("ablate", ["--features", "3,3"], ["names a feature twice"]),
        ("ablate", ["--features", "40"], ["--features 40", "0 to 39"]),
        ("ablate", ["--features", "3", "--positions", "99"], ["position 99 does not exist", "tokens"]),
        ("ablate", ["--features", "3", "--positions", "0"], ["position 0 is left out: it is BOS"]),
        ("ablate", ["--features", "3", "--positions", "first"], ["--positions 'first'", "last, generated"]),
        ("ablate", ["--features", "3", "--where", "3>x"], ["--where '3>x'"]),
        ("ablate", ["--features", "3", "--where", "41"], ["feature 41 does not exist"]),
        ("ablate", ["--features", "3", "--top-k", "0"], ["--top-k 0"]),
        ("steer", ["--strength", "1"], ["give --features to steer", "--direction"]),
        ("steer", ["--features", "5"], ["give --strength, as 1, or --sweep"]),
        ("steer", [*STEER, "--sweep", "0,1"], ["give --strength, as 1, or --sweep"]),
        ("steer", ["--features", "5", "--strength", "nan"], ["--strength [nan]: take finite numbers"]),
        ("steer", ["--features", "5", "--sweep", "0,nan"], ["--sweep [0.0, nan]: take finite numbers"]),
        ("steer", ["--features", "5", "--sweep", "2..-2"], ["--sweep '2..-2'"]),
        ("steer", ["--features", "5", "--sweep", "0..1/0"], ["--sweep '0..1/0'"]),
        ("steer", ["--features", "5", "--sweep", "0..1/0.001"], ["has 1001 strengths"]),
        ("steer", ["--features", "7", "--strength", "1"], ["feature 7", "never fired"]),
        ("steer", [*STEER, "--mode", "scale", "--relative-to", "max"], ["mode scale multiplies"]),
        ("steer", [*STEER, "--mode", "scale", "--maximum", "3"], ["--maximum 3 goes with --relative-to max"]),
        ("steer", [*STEER, "--max-new-tokens", "0"], ["--max-new-tokens 0"]),
        ("steer", [*STEER, "--site", "resid_post.2"], ["--direction FILE and --site"]),
        ("steer", [*STEER, "--sae-id", "resid_post/layer_5_width_40_l0_small"], ["of one --sae-id"]),
        ("steer", [*STEER, "--mode", "ad"], ["--mode", "'ad'"]),
    ],
)
def test_bad_input_is_one_line(command, options, words, world, capsys):
    assert_refused(run(capsys, *arguments(world, command, *options)), *words)


def test_a_dictionary_without_maxima_asks_for_one(world, capsys):
    ran = run(capsys, *arguments(world, "steer", *STEER, sae_id="resid_post/layer_5_width_40_l0_small"))
    assert_refused(ran, "nothing beside resid_post/layer_5_width_40_l0_small says how strongly its features fire")


@pytest.mark.parametrize(
    ("file", "site", "words"),
    [
        ("two.safetensors", "resid_post.2", ["holds 2 tensors; say which"]),
        ("none.npy", "resid_post.2", ["none.npy does not exist"]),
        ("v.safetensors", "resid_past.2", ["no site is called 'resid_past'"]),
        ("v.safetensors", "attn_out.2", ["is a tensor [24], got [16]"]),
        ("v.safetensors", "resid_post.9", ["resid_post.9 does not exist", "0 to 6"]),
    ],
)
def test_directions_that_cannot_be_used(file, site, words, world, capsys):
    more = ["--direction", world.model.parent / file, "--site", site, "--strength", "3", "--prompt", TEXT]
    assert_refused(run(capsys, "steer", "--model-id", world.model, *more), *words)
