"""``gemlens`` with nowhere to write, interrupted, out of memory, or on poor terminals: nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli_helpers import REPORT, assert_refused, everything_in, make_world, report, run, spawn


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


# Nowhere to write


@pytest.mark.parametrize("folder", ["file.txt", "file.txt/deeper", "/dev/full", "x" * 300 + "/y"])
def test_an_output_folder_that_cannot_be_is_refused_before_loading(capsys, elsewhere, monkeypatch, folder):
    Path("file.txt").write_text("mine")
    monkeypatch.setattr("gemlens.app.analyze.load", lambda *_args, **_settings: pytest.fail("went on to load"))
    ran = run(capsys, "analyze", "--export", "json", "--out-dir", folder)
    assert_refused(ran, repr(folder).strip("'")[:40])
    assert everything_in(elsewhere) == ["file.txt"]
    assert Path("file.txt").read_text() == "mine"


def test_a_report_name_taken_by_a_folder_is_refused_before_loading(capsys, monkeypatch):
    monkeypatch.setattr("gemlens.app.analyze.load", lambda *_args, **_settings: pytest.fail("went on to load"))
    Path("outputs", f"{REPORT}.html", "mine").mkdir(parents=True)
    assert_refused(run(capsys, "analyze", "--export", "html"), f"outputs/{REPORT}.html is a folder")
    assert Path("outputs", f"{REPORT}.html", "mine").is_dir()


def test_a_read_only_disk_is_refused_before_loading(capsys, elsewhere, monkeypatch):
    def read_only(*_args, **_settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    assert_refused(run(capsys, "analyze", "--export", "json"), "'outputs'", "Read-only file system")
    assert everything_in(elsewhere) == []


def test_a_disk_that_fills_up_leaves_the_old_report_and_no_part_of_the_new(world, capsys, elsewhere, monkeypatch):
    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run(capsys, *world.arguments("--prompt", "old", "--export", "json")).code == 0
    before = everything_in(elsewhere)
    monkeypatch.setattr(os, "fsync", full)
    assert_refused(run(capsys, *world.arguments("--prompt", "new", "--export", "json")), "No space left", "free some")
    assert everything_in(elsewhere) == before
    assert report()["prompt"] == "old"
    ran = run(capsys, *world.arguments("--export", "html", "--out-dir", "new"))
    assert_refused(ran, "No space left", "new/")
    assert everything_in(elsewhere) == before


# Interrupted, out of memory, and standard output that goes away


def test_ctrl_c_ends_with_130_and_nothing_written(world, capsys, elsewhere, monkeypatch):
    def stopped(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("gemlens.study.analyze.ragged_activations", stopped)
    ran = run(capsys, *world.arguments("--export", "json"))
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "error: interrupted")
    assert everything_in(elsewhere) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_real_interrupt_ends_a_real_process(world, elsewhere):
    code = (
        "import signal, time, gemlens.study.analyze as study\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def reading(*_):\n"
        "    print('reading', flush=True)\n"
        "    while True: time.sleep(0.05)\n"  # one long sleep could begin just after the signal was noted
        "study.ragged_activations = reading\n"
        "from gemlens.app.cli import main; main()"
    )
    arguments = [sys.executable, "-c", code, *world.arguments("--export", "html")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "reading\n"
            assert everything_in(elsewhere) == ["outputs"]
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (130, "error: interrupted")
    assert everything_in(elsewhere) == []


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate"), MemoryError()],
)
def test_too_little_memory_is_told_in_one_line(world, capsys, monkeypatch, error):
    def too_much(*_args, **_settings):
        raise error

    monkeypatch.setattr("gemlens.study.analyze.ragged_activations", too_much)
    assert_refused(run(capsys, *world.arguments()), "out of memory", "shorten the prompt")


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(world, capsys, monkeypatch):
    def faulty(*_args, **_settings):
        raise AssertionError("ours")

    monkeypatch.setattr("gemlens.study.analyze.ragged_activations", faulty)
    with pytest.raises(AssertionError, match="ours"):
        run(capsys, *world.arguments())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk(world):
    with Path("/dev/full").open("w") as full:
        settings = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        for arguments in (["--help"], world.arguments("--prompt", "the cat")):
            ran = spawn(*arguments, **settings)
            assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
            assert "No space left on device" in ran.err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_leaves_early_does_not_cost_the_report(world):
    arguments = [sys.executable, "-c", "from gemlens.app.cli import main; main()", *world.arguments("--export", "json")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, f"wrote outputs/{REPORT}.json\n")
    assert report()["layer"] == 2


def test_a_terminal_that_knows_only_ascii_shows_everything(world, text):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "COLUMNS": "60"}
    prompt = "the é 🌊 " + "and" * 3
    ran = spawn(*world.arguments("--prompt", prompt, "--no-chat", "--export", "json"), env=plain)
    assert ran.code == 0, ran.err
    assert ran.out.isascii()
    assert "\\xe9" in ran.out
    assert "| _  " in ran.out
    assert max(map(len, ran.out.splitlines())) <= 60
    assert report()["prompt"] == prompt
    ran = spawn("fidelity", *world.arguments()[1:7], "--texts", text, env=plain)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.isascii()
    assert "CE spliced" in ran.out


def test_a_token_in_dotenv_is_used_and_never_printed(world, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gemlens.app.analyze.load", lambda *_args, **_settings: seen.append(os.environ["HF_TOKEN"]) or 1 / 0
    )
    Path(".env").write_text("HF_TOKEN=hf_secret_of_mine\n")
    with pytest.raises(ZeroDivisionError):
        run(capsys, *world.arguments())
    assert seen == ["hf_secret_of_mine"]
    assert "hf_secret" not in "".join(capsys.readouterr())
