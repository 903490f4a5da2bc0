"""``gemlens collect features`` as a user meets it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from cli_helpers import ID, assert_refused, everything_in, make_world, run, spawn

OTHER = "resid_post/layer_5_width_40_l0_small"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("text.txt").write_text("the cat and the dog sat in the sun. " * 600)
    return folder


def arguments(world, *more, out="found"):
    names = {"--model-id": world.model, "--sae-release": world.release, "--texts": "text.txt", "--row-length": 16}
    return ["collect", "features", *(str(part) for pair in names.items() for part in pair), "--out", out, *more]


def test_all_dictionaries_of_a_release_from_one_reading(world, capsys, elsewhere):
    ran = run(capsys, *arguments(world, "--tokens", "2k", "--examples", 5))
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert "found holds evidence of 80 features of 2 dictionaries, from 2,010 tokens" in ran.err
    files = [f"{path}/{name}.safetensors" for path in (ID, OTHER) for name in ("examples", "statistics")]
    there = [name for name in everything_in(elsewhere / "found") if name.endswith(".safetensors")]
    assert there == sorted([*files, "tokens.safetensors"])
    assert load_file(f"found/{ID}/examples.safetensors")["activations"].shape == (40, 5)
    again = run(capsys, *arguments(world, "--tokens", "2k", "--examples", 5))
    assert again.code == 0 and "found holds evidence" in again.err


def test_one_of_them_and_the_options(world, capsys, elsewhere):
    ran = run(
        capsys, *arguments(world, "--sae-id", OTHER, "--quantiles", 3, "--examples", 4, "--compact", "--no-logits")
    )
    assert ran.code == 0, ran.err
    found = load_file(f"found/{OTHER}/examples.safetensors")
    assert {"tokens", "positions"} <= found.keys() and "top_tokens" not in found
    assert not Path("found/tokens.safetensors").exists()


def test_text_that_ends_early_is_told(world, capsys):
    ran = run(capsys, *arguments(world, "--tokens", "9M", "--sae-id", ID, "--no-logits"))
    assert ran.code == 0, ran.err
    assert "warning: the text ends after" in ran.err and "of 9,000,000 tokens" in ran.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--tokens", "many"], ["--tokens many", "50k"]),
        (["--row-length", "1000"], ["row length 1000"]),
        (["--examples", "0"], ["examples 0"]),
        (["--quantiles", "99"], ["quantiles 99"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--sae-id", "layer_9_width_40_l0_small"], ["layer_9_width_40_l0_small"]),
        (["--sae-category", "mlp_out"], ["lies in mlp_out", "resid_post"]),
        (["--model-id", "no such model"], ["--model-id 'no such model'"]),
        (["--engine", "spark"], ["--engine", "spark"]),
        (["--workers", "2"], ["--workers 2", "--engine ray"]),
        (["--texts", "none.txt"], ["none.txt does not exist"]),
        (["--out", "text.txt"], ["text.txt"]),
    ],
)
def test_slips_are_told_in_one_line_and_leave_nothing(world, capsys, elsewhere, changes, words):
    before = everything_in(elsewhere)
    assert_refused(run(capsys, *arguments(world), *changes), *words)
    assert everything_in(elsewhere) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["fills no row of 16 tokens"]),
        ("short.txt", b"the cat", ["fills no row of 16 tokens"]),
        ("binary.txt", bytes(range(256)), ["binary.txt is not UTF-8 text"]),
        ("bad.jsonl", b"{\n", ["bad.jsonl, line 1"]),
    ],
)
def test_what_is_no_text_is_told_and_leaves_nothing(world, capsys, elsewhere, name, content, words):
    Path(name).write_bytes(content)
    given = arguments(world)
    given[given.index("--texts") + 1] = name
    before = everything_in(elsewhere)
    assert_refused(run(capsys, *given), *words)
    assert everything_in(elsewhere) == before


def test_what_must_be_given_is_told(world, capsys):
    assert_refused(run(capsys, "collect", "features", "--out", "x"), "--texts")
    assert_refused(run(capsys, "collect", "features", "--texts", "text.txt"), "--out")
    assert_refused(run(capsys, "collect", "features", "--texts", "text.txt", "--out", "x"), "--sae-release")


def test_other_evidence_is_not_mixed_in(world, capsys):
    assert run(capsys, *arguments(world, "--no-logits")).code == 0
    before = {path: path.read_bytes() for path in Path("found").rglob("*.safetensors")}
    assert_refused(run(capsys, *arguments(world, "--no-logits", "--seed", 1)), "is of another collection")
    assert {path: path.read_bytes() for path in Path("found").rglob("*.safetensors")} == before


def test_ctrl_c_says_how_to_go_on(world, capsys, monkeypatch):
    from gemlens.study.firing import Firing

    def interrupted(self, features, thirds):
        raise KeyboardInterrupt

    monkeypatch.setattr(Firing, "add", interrupted)
    ran = run(capsys, *arguments(world))
    assert ran.code == 130
    assert "the same command goes on with what found holds" in ran.err


def test_help_and_wrong_options_do_not_wait_for_torch(world):
    code = "import sys; from gemlens.app import cli; code = cli._run(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"  # noqa: E501
    for words, expected in ((["--help"], 0), (["--texts", "text.txt", "--out", "x", "--tokens", "no"], 2)):
        ran = spawn("collect", "features", "--model-id", "starter", *words, code=code)
        assert ran.code == expected, ran.err
