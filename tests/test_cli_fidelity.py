"""``gemlens fidelity`` as a user meets it."""

import json
from pathlib import Path

import pytest

from cli_helpers import ID, assert_refused, everything_in, make_world, run


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


@pytest.fixture
def text(elsewhere):
    Path("text.txt").write_text("the cat and the dog sat in the sun. " * 40)
    return Path("text.txt")


def test_fidelity_prints_its_figures_and_writes_them(world, capsys, text, elsewhere):
    arguments = world.arguments()[1:7]
    ran = run(capsys, "fidelity", *arguments, "--texts", text, "--export", "new/figures.json")
    assert ran.code == 0, ran.err
    assert "variance explained" in ran.out
    figures = json.loads(Path("new/figures.json").read_text())
    assert [entry["dictionary"]["site"] for entry in figures] == ["resid_post.2"]
    assert figures[0]["tokens_measured"] >= 256
    assert everything_in(elsewhere / "new") == ["figures.json"]


def test_fidelity_counts_dead_features_on_the_training_mix(world, capsys, text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = run(capsys, "fidelity", *world.arguments()[1:7], "--texts", text, "--mix", text, "--export", "f.json")
    assert ran.code == 0, ran.err
    figures = json.loads(Path("f.json").read_text())[0]
    assert 0 < figures["dead_tokens"] < figures["tokens_measured"]
    assert figures["dead"] == pytest.approx(figures["silent"])
    assert "of the training mix" in ran.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--texts"]),
        (["--texts", "text.txt", "--mix", "none.txt"], ["none.txt does not exist"]),
        (["--texts", "none.txt"], ["none.txt does not exist"]),
        (["--texts", "text.txt", "--export", "json"], ["--export json", ".json file"]),
        (["--texts", "text.txt", "--export", "text.txt/a.json"], ["text.txt"]),
        (["--texts", "text.txt", "--sae-id", ".."], ["'..'", "leads out"]),
        (["--texts", "text.txt", "--sae-id", "layer_2"], ["layer_2", "did you mean"]),
        (["--texts", "short.txt", "--export", "new/figures.json"], ["rows of 128"]),
        (["--texts", "bad.jsonl", "--export", "new/figures.json"], ["bad.jsonl, line 2", "not JSON"]),
        (["--texts", "latin.txt", "--export", "new/figures.json"], ["latin.txt", "not UTF-8"]),
    ],
)
def test_fidelity_tells_slips_in_one_line_and_writes_nothing(world, capsys, text, elsewhere, arguments, words):
    Path("short.txt").write_text("the cat")
    Path("bad.jsonl").write_text('{"text": "the cat"}\n{"text": \n')
    Path("latin.txt").write_bytes(b"caf\xe9 " * 200)
    before = everything_in(elsewhere)
    assert_refused(run(capsys, "fidelity", *world.arguments()[1:5], "--sae-id", ID, *arguments), *words)
    assert everything_in(elsewhere) == before
