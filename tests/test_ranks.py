"""Features shared out over processes: training ends where one process alone does, and no process waits forever."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ranks_worker as worker
from gemlens import load_sae
from gemlens.data.corpus import documents
from gemlens.errors import InputError
from gemlens.sites import parse_site
from gemlens.train import learner as learning
from gemlens.train.collect import collect_activations
from gemlens.train.distributed import ranks_from_environment
from gemlens.train.ranks import Alone, mine, share
from planted import small
from tiny import tiny_gemma

TESTS = Path(__file__).parent
BY_FEATURE = ("w_enc", "b_enc", "w_dec", "log_threshold")


def both(what: str, folder: Path, worker: str = "ranks_worker.py") -> list[subprocess.CompletedProcess[str]]:
    """Two processes, started as torchrun starts them; it would end the second as soon as the first one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(TESTS / worker), what, str(folder)]
    started = [
        subprocess.Popen(command, env={**known, "RANK": str(rank)}, text=True, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=180)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, None, text)
        for process, text in zip(started, said, strict=True)
    ]


class Of:
    """A process that is spoken of only."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for done in both("cases", folder):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def capped(monkeypatch):
    monkeypatch.setattr(learning, "_DEAD_TOGETHER", worker.CAP)


@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_train_what_one_does(case, trained, capped):
    """20 float32 steps, to 1e-5: weights (decoder rows have norm 1), losses, and the dictionary at the end."""
    learner, steps = worker.train(case, Alone())
    whole, config = worker.weights_of(learner), learner.config
    assert steps[:, worker.Step._fields.index("dead")].max() > worker.CAP, (
        "more were to be dead than are helped at once"
    )
    dead = learner._silent[0] > config.dead_after
    assert (whole["b_enc.0"][dead] != worker.START).any(), "the auxiliary loss was to take part"
    for rank in range(2):
        found = load_file(trained / f"{case}.{rank}")
        torch.testing.assert_close(found["steps"], steps, rtol=1e-5, atol=1e-5)
        for name, tensor in whole.items():
            held = share(config.width, Of(rank, 2)) if name.split(".")[0] in BY_FEATURE else slice(None)
            torch.testing.assert_close(found[f"held.{name}"], tensor[held], rtol=0, atol=1e-5)
        for name, tensor in worker.folded(learner.finish()).items():
            limit = 1e-5 * float(tensor.abs().max())
            torch.testing.assert_close(found[f"folded.{name}"], tensor, rtol=1e-5, atol=limit)


def test_what_each_process_holds_whole_stays_the_same_to_the_bit(trained):
    for case in worker.CASES:
        first, second = (load_file(trained / f"{case}.{rank}") for rank in range(2))
        for name, tensor in first.items():
            # Left are steps, b_dec, skips and finished dictionaries.
            if not re.match(rf"held\.({'|'.join(BY_FEATURE)})\.", name):
                assert torch.equal(tensor, second[name]), (case, name)
        assert sum(len(each["held.w_enc.0"]) for each in (first, second)) == worker.config_of(case).width


def test_slices_go_on_to_the_bit_and_refuse_what_does_not_fit(tmp_path):
    for done in both("resume", tmp_path):
        assert done.returncode == 0, done.stderr
    for rank in range(2):
        said = {path.stem: path.read_text("utf-8") for path in tmp_path.glob(f"*.{rank}")}
        assert said["rank"] == "MismatchError: processes 0 to 1 were given states of [0, 0]; give each its own"
        assert said["step"].startswith("MismatchError: the processes' states are of steps [10, 11]")
        assert said["config"].startswith("InputError: the processes were given different configs")
        assert said["sample"].startswith("InputError: the processes do not read the same activations of resid_post.1")


@pytest.mark.parametrize("what", ["killed", "stuck"])
def test_a_process_that_ends_or_hangs_stops_the_others(what, tmp_path):
    done = both(what, tmp_path)
    assert done[0].returncode == 0, done[0].stderr
    said = (tmp_path / "said").read_text("utf-8")
    assert re.fullmatch(
        r"NetworkError: process 0 of 2: another one ended, or did not answer for \d+ s \([^\n🏖]+\); see .*", said
    )


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(ranks_from_environment(), Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE is 2, and RANK is not set; start with torchrun"):
        ranks_from_environment()


def test_alone_copies_nothing():
    part = torch.zeros(3)
    assert Alone().sum(part) is part and Alone().gather(part) is part


def test_shares_are_runs_of_features_that_leave_none_out():
    for width, size in ((64, 1), (65, 2), (5, 4), (3, 3), (100, 7)):
        shares = [share(width, Of(rank, size)) for rank in range(size)]
        assert [i for each in shares for i in range(each.start, each.stop)] == list(range(width))
        lengths = {each.stop - each.start for each in shares}
        assert max(lengths) - min(lengths) <= 1 <= min(lengths)
    with pytest.raises(InputError, match="width 2 over 3 processes"):
        share(2, Of(0, 3))


def test_whole_dictionaries_are_dealt_out():
    configs = [small(width=width) for width in (8, 16, 32, 64, 128)]
    dealt = [mine(configs, Of(rank, 2)) for rank in range(2)]
    assert dealt == [configs[::2], configs[1::2]]
    assert mine(configs, Alone()) == configs
    assert mine(configs[:1], Of(1, 2)) == []


def test_the_script_of_the_docs_runs(tmp_path):
    """``docs/distributed.md`` as it stands, at a smaller size."""
    page = (TESTS.parent / "docs" / "distributed.md").read_text("utf-8")
    script = re.search(r"```python\n(# sliced\.py.*?)```", page, re.DOTALL)[1]
    for name, value in (("width=4096", "width=64"), ("l0=50", "l0=3"), ("tokens=1_000_000", "tokens=2_560"),
                        ("batch=1024", "batch=256")):  # fmt: skip
        assert name in script
        script = script.replace(name, value)
    (tmp_path / "sliced.py").write_text(script, "utf-8")
    (tmp_path / "text.txt").write_text("the thing and the other thing " * 500, "utf-8")
    collect_activations(
        tiny_gemma(), documents([tmp_path / "text.txt"]), folder=tmp_path / "acts",
        sites=[parse_site("resid_post.2")], tokens=2600, row_length=16,
    )  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "sliced.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "step 10" in done.stdout
    assert load_sae(str(tmp_path / "sae")).encoder.width == 64
