"""``gemlens export`` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gemlens
from cli_helpers import ID, assert_refused, everything_in, make_world, run
from gemlens.scope.load import load_clt, load_sae
from gemlens.scope.starter import STARTER_DICTIONARY, starter_root
from layouts import CLT, random_layers, write_layers

OTHER = ID.replace("layer_2", "layer_5")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"))
    (made.release / ID / "card.json").write_text('{"l0": 12.5}')
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_starters_dictionary_there_and_back(capsys):
    pytest.importorskip("gemlens_starter", reason="the starter's data is not installed: pip install ./starter")
    assert run(capsys, "export", "starter", STARTER_DICTIONARY, "--dtype", "int8", "--out", "small").code == 0
    ran = run(capsys, "export", "small", "--dtype", "float32", "--out", "large")
    assert (ran.code, ran.out) == (0, "")
    assert f"wrote large/{STARTER_DICTIONARY} (21.0 MB)" in ran.err
    small, large, given = (load_sae(name, STARTER_DICTIONARY) for name in ("small", "large", "starter"))
    assert small.nbytes < large.nbytes / 3.9
    x = torch.randn(20, 640, generator=torch.Generator().manual_seed(0)) * 100 + given.b_dec
    assert torch.equal(small.encode(x).dense(), large.encode(x).dense())
    assert torch.equal(small.reconstruct(x), large.reconstruct(x))
    fires, fired = small.encode(x).dense() > 0, given.encode(x).dense() > 0
    assert (fires & fired).sum() / fired.sum() > 0.95
    assert "quantized" not in json.loads(Path("large", STARTER_DICTIONARY, "config.json").read_text())
    for name in ("card.json", "max_activation.safetensors"):
        assert (
            Path("large", STARTER_DICTIONARY, name).read_bytes()
            == (starter_root() / STARTER_DICTIONARY / name).read_bytes()
        )


def test_a_whole_release_of_several_kinds(world, capsys, tmp_path):
    release = tmp_path / "release"
    write_layers(release / CLT, random_layers(skip=True))
    ran = run(capsys, "export", world.release, "--dtype", "bfloat16", "--out", "out")
    assert ran.code == 0, ran.err
    assert [line.split()[1] for line in ran.err.splitlines()] == [f"out/{ID}", f"out/{OTHER}"]
    assert Path("out", ID, "card.json").read_text() == '{"l0": 12.5}'
    assert json.loads(Path("out", ID, "config.json").read_text())["l0"] == 20
    stored = load_file(Path("out", ID, "params.safetensors"))
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert run(capsys, "export", release, CLT, "--dtype", "int8", "--out", "out").code == 0
    assert load_clt("out", CLT).layer(load_clt("out", CLT).reads[1]).outputs == 2


def test_nothing_is_overwritten_without_being_told(world, capsys):
    arguments = ["export", world.release, ID, "--out", "out"]
    assert run(capsys, *arguments, "--dtype", "int8").code == 0
    before = Path("out", ID, "params.safetensors").read_bytes()
    assert_refused(run(capsys, *arguments, "--dtype", "float32"), ID, "--overwrite")
    assert Path("out", ID, "params.safetensors").read_bytes() == before
    assert run(capsys, *arguments, "--dtype", "float32", "--overwrite").code == 0
    assert Path("out", ID, "params.safetensors").read_bytes() != before
    Path("out", ID, "mine").mkdir()
    assert_refused(run(capsys, *arguments, "--dtype", "int8", "--overwrite"), "not just one dictionary")
    assert not [name for name in everything_in(Path("out")) if ".gemlens" in name]


def test_the_cost_is_printed_where_a_model_is_given(world, capsys):
    Path("text.txt").write_text("the cat and the dog sat in the sun. " * 40)
    ran = run(
        capsys, "export", world.release, ID, "--dtype", "int8", "--out", "out",
        "--model-id", world.model, "--texts", "text.txt",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "of the active features are still active" in ran.out
    assert "CE spliced" in ran.out
    card = json.loads(Path("out", ID, "card.json").read_text())
    exact, stored = load_sae(str(world.release), ID), load_sae("out", ID)
    cost = gemlens.quantization_cost(
        gemlens.load_model(str(world.model)), exact, stored, [Path("text.txt").read_text()]
    )
    expected = {"l0": cost.quantized.l0, "int8_kept": cost.kept, "int8_ce_change": cost.ce_change}
    assert {name: card[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert 0.5 < cost.kept < 1, "the test would not tell"
    # Once it is int8, writing it as such again costs nothing, which says nothing of what int8 cost.
    again = ["export", "out", ID, "--dtype", "int8", "--out", "again"]
    assert run(capsys, *again, "--model-id", world.model, "--texts", "text.txt").code == 0
    assert json.loads(Path("again", ID, "card.json").read_text()) == card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["starter", "--out", "out"], ["--dtype is missing"]),
        (["starter", "--dtype", "int8"], ["--out is missing"]),
        (["starter", "--dtype", "int4", "--out", "out"], ["int4", "float32", "int8"]),
        (["nowhere", "--dtype", "int8", "--out", "out"], ["nowhere", "neither a folder"]),
        (["some/where", "--dtype", "int8", "--out", "out"], ["some/where", "name the dictionaries"]),
        (["WORLD", "../x", "--dtype", "int8", "--out", "out"], ["leads out"]),
        (["WORLD", "resid_post/layer_3", "--dtype", "int8", "--out", "out"], ["layer_3", "did you mean"]),
        (["WORLD", "--dtype", "int8", "--out", "out", "--texts", "text.txt"], ["--model-id and --texts"]),
        (["WORLD", ID, "--dtype", "int8", "--out", "file"], ["file"]),
    ],
)
def test_slips_are_told_in_one_line_and_nothing_is_written(world, capsys, elsewhere, arguments, words):
    Path("file").write_text("mine")
    given = [world.release if word == "WORLD" else word for word in arguments]
    assert_refused(run(capsys, "export", *given), *words)
    assert everything_in(elsewhere) == ["file"]
