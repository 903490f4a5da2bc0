"""``gemlens analyze`` with dictionaries and models that are missing, damaged or do not fit: one line, no litter."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_helpers import ID, REPORT, add_dictionary, assert_refused, everything_in, make_world, report, run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    """An empty working folder, so that litter shows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "3"], ["--layer 3", ID, "layer 2"]),
        (["--sae-id", "resid_post/layer_2_width_40_l0_smal"], ["layer_2_width_40_l0_smal", "did you mean", ID]),
        (["--sae-id", "resid_post/"], ["resid_post"]),
        (["--prompt", "x" * 300], ["tokens", "256", "shorten"]),
        (["--max-new-tokens", "300"], ["300 new", "256", "shorten"]),
    ],
)
def test_a_slip_found_while_loading_leaves_nothing_behind(world, capsys, elsewhere, arguments, words):
    ran = run(capsys, *world.arguments("--export", "json", "--out-dir", "new/deep", *arguments))
    assert_refused(ran, *words)
    assert everything_in(elsewhere) == []


def test_a_layer_that_only_the_config_knows_is_held_against_the_option(world, tmp_path, capsys):
    add_dictionary(tmp_path / "mine", "best", layer=4)
    arguments = ["--sae-release", tmp_path / "mine", "--sae-category", ""]
    assert run(capsys, *world.arguments(*arguments, "--layer", 4, sae_id="best")).code == 0
    assert_refused(run(capsys, *world.arguments(*arguments, "--layer", 5, sae_id="best")), "--layer 5", "layer 4")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 7}, ["resid_post.7", "0 to 6"]),
        ({"d_in": 24}, ["24", "16", "gemma-3-270m-it"]),
        ({"model_name": "google/gemma-2-2b"}, ["gemma-2-2b", "another generation"]),
        ({"width": 41}, ["41", "40", "download"]),
        ({"architecture": "topk"}, ["topk", "jump_relu"]),
        ({"hf_hook_point_in": "model.embed"}, ["model.embed", "model.layers.0.output"]),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(world, tmp_path, capsys, elsewhere, change, words):
    add_dictionary(tmp_path / "odd", "resid_post/odd", **change)
    ran = run(capsys, *world.arguments("--sae-release", tmp_path / "odd", "--export", "html", sae_id="odd"))
    assert_refused(ran, *words)
    assert everything_in(elsewhere) == []


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_bytes(b"<html>not what you wanted</html>")


def _without(name):
    def damage(path):
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)

    return damage


def _nan(name):
    def damage(path):
        tensors = load_file(path)
        tensors[name].view(-1)[3] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("params.safetensors", _cut, ["params.safetensors", "truncated"]),
        ("params.safetensors", _empty, ["params.safetensors", "truncated"]),
        ("params.safetensors", _text, ["params.safetensors", "truncated"]),
        ("params.safetensors", _without("threshold"), ["lacks threshold", "w_enc"]),
        ("params.safetensors", _nan("w_enc"), ["w_enc", "not finite"]),
        ("params.safetensors", Path.unlink, ["no dictionary"]),
        ("config.json", _cut, ["config.json", "download"]),
        ("config.json", lambda path: path.write_text("[]"), ["config.json", "object"]),
    ],
)
def test_a_damaged_dictionary_is_refused(world, tmp_path, capsys, elsewhere, file, damage, words):
    damage(add_dictionary(tmp_path / "bad", ID) / file)
    ran = run(capsys, *world.arguments("--sae-release", tmp_path / "bad", "--export", "json"))
    assert_refused(ran, *words)
    assert everything_in(elsewhere) == []


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("model.safetensors", _cut, ["gemma-3-270m-it", "cannot be read"]),
        ("model.safetensors", Path.unlink, ["no *.safetensors"]),
        ("model.safetensors", _without("model.layers.3.mlp.up_proj.weight"), ["lacks 1 tensors", "layers.3.mlp"]),
        ("model.safetensors", _nan("model.layers.1.mlp.up_proj.weight"), ["resid_post.2", "not finite"]),
        ("config.json", Path.unlink, ["no config.json"]),
        ("config.json", _cut, ["config.json", "cannot be read"]),
        ("config.json", lambda path: path.write_text('{"model_type": "llama"}'), ["'llama'", "Gemma 2 and 3"]),
        ("tokenizer.json", Path.unlink, ["no tokenizer.json"]),
        ("tokenizer.json", _cut, ["tokenizer", "cannot be read"]),
    ],
)
def test_a_damaged_model_is_refused(world, tmp_path, capsys, elsewhere, file, damage, words):
    copy = shutil.copytree(world.model, tmp_path / world.model.name)
    damage(copy / file)
    assert_refused(run(capsys, *world.arguments("--model-id", copy, "--export", "json")), *words)
    assert everything_in(elsewhere) == []


def test_a_fine_tune_runs_with_a_warning_in_every_view(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    copy = shutil.copytree(world.model, tmp_path / "my-gemma-3-270m-poet")
    kinds = ["--export", "html", "--export", "json"]
    ran = run(capsys, *world.arguments("--model-id", copy, *kinds))
    assert ran.code == 0, ran.err
    warning = f"{ID} was trained on google/gemma-3-270m-it, not on {copy}: features may mislead"
    assert ran.out.splitlines()[0] == f"warning: {warning}"
    assert report()["warnings"] == [warning]
    assert warning in Path("outputs", f"{REPORT}.html").read_text("utf-8")


def test_the_model_a_dictionary_was_trained_on_gives_no_warning(world, capsys):
    ran = run(capsys, *world.arguments("--export", "json"))
    assert "warning" not in ran.out + ran.err
    assert report()["warnings"] == []
