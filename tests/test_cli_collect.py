"""``gemlens collect activations`` as a user meets it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import assert_refused, everything_in, make_world, run
from gemlens.app.options import parse_count
from gemlens.data.activations import open_store
from gemlens.errors import InputError

SMALL = "from gemlens.train import collect; collect.SHARD_BYTES = 1 << 14; "
RUN = "from gemlens.app.cli import main; main()"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("text.txt").write_text("the cat and the dog sat in the sun. " * 3000)
    return folder


def arguments(world, *more, sites="resid_post.1,resid_post.3", tokens="5k", out="acts"):
    names = {"--model-id": world.model, "--texts": "text.txt", "--sites": sites, "--tokens": tokens, "--out": out}
    names["--dtype"] = "bfloat16"  # the same on every processor
    return ["collect", "activations", *(str(part) for pair in names.items() for part in pair), *more]


def test_it_says_its_size_and_fills_the_folder(world, capsys, elsewhere):
    ran = run(capsys, *arguments(world, "--row-length", "64"))
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert "writing 0.3 MB to acts: 5,000 tokens of 64 bytes" in ran.err
    assert "acts holds 5,040 tokens at resid_post.1,resid_post.3 in 1 shards" in ran.err
    assert everything_in(elsewhere / "acts") == ["manifest.json", "shard-00000.safetensors"]
    info = open_store(elsewhere / "acts").info
    assert (info.dtype, info.row_length, info.tokens, info.model) == ("bfloat16", 64, 5000, str(world.model))
    again = run(capsys, *arguments(world, "--row-length", "64"))
    assert again.code == 0
    assert "acts is complete" in again.err


def test_underscores_and_help_work_in_the_nested_command(world, capsys):
    assert run(capsys, *[part.replace("--model-id", "--model_id") for part in arguments(world, tokens="300")]).code == 0
    for words in (["collect"], ["collect", "--help"], ["collect", "activations", "-h"]):
        ran = run(capsys, *words)
        assert ran.code == 0
        assert "activations" in ran.out


def test_text_that_ends_early_is_told(world, capsys):
    ran = run(capsys, *arguments(world, tokens="9M"))
    assert ran.code == 0, ran.err
    assert "warning: the text ends after" in ran.err
    assert "of 9,000,000 tokens" in ran.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--texts", "none.txt"], ["none.txt does not exist"]),
        (["--sites", "resid_pots.1"], ["resid_pots", "did you mean resid_post"]),
        (["--sites", "resid_post.99"], ["resid_post.99 does not exist", "0 to 6"]),
        (["--sites", ""], ["is not a site"]),
        (["--tokens", "many"], ["--tokens many", "50k"]),
        (["--tokens", "0"], ["--tokens 0"]),
        (["--row-length", "1000"], ["row length 1000"]),
        (["--out", "text.txt"], ["text.txt"]),
        (["--out", "."], ["holds other files"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--model-id", "no such model"], ["--model-id 'no such model'"]),
        (["--dtype", "int8"], ["--dtype", "int8"]),
        (["--texts", "bad.jsonl"], ["bad.jsonl, line 1"]),
    ],
)
def test_slips_are_told_in_one_line_and_leave_nothing(world, capsys, elsewhere, changes, words):
    Path("bad.jsonl").write_text("{\n")
    given = arguments(world)
    if changes[0] == "--texts":  # repeated, it would add to the first
        at = given.index("--texts")
        del given[at : at + 2]
    before = everything_in(elsewhere)
    ran = run(capsys, *given, *changes)
    last = ran._replace(err="".join(line for line in ran.err.splitlines(True) if not line.startswith("writing")))
    assert_refused(last, *words)
    assert everything_in(elsewhere) == before


def test_what_must_be_given_is_told(world, capsys):
    assert_refused(run(capsys, "collect", "activations", "--out", "x"), "--texts")
    assert_refused(run(capsys, "collect", "activations", "--texts", "text.txt"), "--out")


def test_another_site_is_not_mixed_in(world, capsys, elsewhere):
    assert run(capsys, *arguments(world)).code == 0
    before = {path.name: path.read_bytes() for path in Path("acts").iterdir()}
    assert_refused(run(capsys, *arguments(world, sites="resid_post.2")), "sites", "resid_post.1", "resid_post.2 (16)")
    assert {path.name: path.read_bytes() for path in Path("acts").iterdir()} == before


def test_ctrl_c_says_how_to_go_on(world, capsys, monkeypatch):
    from gemlens.data.activations import ActivationStore

    def interrupted(self, tensors):
        raise KeyboardInterrupt

    monkeypatch.setattr(ActivationStore, "add", interrupted)
    ran = run(capsys, *arguments(world))
    assert ran.code == 130
    assert "the same command goes on with what acts holds" in ran.err


def test_a_process_killed_in_the_middle_goes_on_to_the_same_bytes(world, capsys, monkeypatch):
    """kill -9 of a real process, once some shards are there, at a moment nobody chose."""
    monkeypatch.setattr("gemlens.train.collect.SHARD_BYTES", 1 << 14)
    text = arguments(world, "--row-length", "64", tokens="20k")
    assert run(capsys, *text, "--out", "whole").code == 0
    process = subprocess.Popen([sys.executable, "-c", SMALL + RUN, *text], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(Path("acts").glob("shard*"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not json.loads(Path("acts/manifest.json").read_text())["complete"]
    ran = run(capsys, *text)
    assert ran.code == 0, ran.err
    assert "still to come" in ran.err
    whole, resumed = (
        {path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("whole", "acts")
    )  # fmt: skip
    assert len(whole) == 1 + 10
    assert resumed == whole


@pytest.mark.parametrize(
    ("text", "count"),
    [("50k", 50_000), ("2M", 2_000_000), ("1.5m", 1_500_000), ("2_000", 2000), ("1,000", 1000), ("0.1B", 10**8)],
)
def test_counts_are_read(text, count):
    assert parse_count("--tokens", text) == count


@pytest.mark.parametrize("text", ["", "k", "-5", "0", "1e6", "2 M", "0.0001", "nan"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(InputError, match="--tokens"):
        parse_count("--tokens", text)
