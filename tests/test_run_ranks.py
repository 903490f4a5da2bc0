"""Runs of several processes: they end where one ends, whenever any of them was killed, and say what does not fit."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import runs_worker as worker
from gemlens.errors import InputError
from gemlens.train.ranks import Place, dealt
from gemlens.train.run_folder import RunFolder, has_checkpoint
from test_ranks import both

RESULTS = ("config.json", "curves.csv", "params.safetensors")


def results(folder: Path) -> dict[str, bytes]:
    return {f"{path}/{name}": (folder / path / name).read_bytes() for path in worker.PATHS for name in RESULTS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Learner", "SAMPLE_BYTES"):
            patch.setattr(worker.run_module, name, getattr(worker.run_module, name))
        worker.go(folder)
    return folder


def test_processes_that_share_features_end_where_one_does(alone, tmp_path):
    """20 float32 steps to 1e-5; and to the bit, however the run was broken off."""
    (tmp_path / "alone").symlink_to(alone)
    for done in both("shared", tmp_path, worker="runs_worker.py"):
        assert done.returncode == 0, done.stderr
    for path in worker.PATHS:
        found, expected = (load_file(folder / path / "params.safetensors") for folder in (tmp_path / "unbroken", alone))
        for name, tensor in expected.items():
            limit = 1e-5 * float(tensor.abs().max())
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=limit)
        ours, theirs = (
            list(csv.reader((folder / path / "curves.csv").open())) for folder in (tmp_path / "unbroken", alone)
        )
        for row, other in zip(ours[1:], theirs[1:], strict=True):
            assert list(map(float, row)) == pytest.approx(list(map(float, other)), rel=1e-4)
    for broken in ("killed", "between", "asked"):
        assert results(tmp_path / broken) == results(tmp_path / "unbroken"), broken
    names = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert names == ["checkpoint.1of2", "checkpoint.2of2", "resid_post"]
    assert [path.name for path in (tmp_path / "killed/checkpoint.1of2").iterdir()] == ["checkpoint.safetensors"]
    for rank in range(2):
        said = {path.stem: path.read_text("utf-8") for path in tmp_path.glob(f"*.{rank}")}
        assert "holds a run of 1 process, this one is of 2 processes; start as many" in said["number"]
        assert "have no step in common (20; none); bring back those that are missing" in said["missing"]
    with pytest.raises(InputError, match="holds a run of 2 processes, this one is of 1 process; start as many"):
        worker.run_module.train(worker.Batches(worker.CONFIGS), worker.CONFIGS, tmp_path / "unbroken")


def test_dictionaries_that_are_dealt_out_are_those_of_one_process_to_the_bit(alone, tmp_path):
    for done in both("apart", tmp_path, worker="runs_worker.py"):
        assert done.returncode == 0, done.stderr
    assert results(tmp_path / "dealt") == results(alone)
    for rank in range(2):
        said = (tmp_path / f"number.{rank}").read_text("utf-8")
        assert "holds a run of 2 processes, this one is of 3 processes" in said


def test_more_processes_than_dictionaries_are_refused():
    assert dealt({"a": 1, "b": 2, "c": 3}, Place(1, 2)) == {"b": 2}
    with pytest.raises(InputError, match="4 processes for 3 dictionaries"):
        dealt({"a": 1, "b": 2, "c": 3}, Place(3, 4))


class Others:
    """Ranks whose other process has checkpoints of these steps."""

    rank, size = 0, 2

    def __init__(self, *steps):
        self.steps = steps

    def gather(self, part):
        return torch.cat([part, torch.tensor([self.steps])])

    def sum(self, part):
        return part


@pytest.mark.parametrize(
    ("old", "new", "others", "found"),
    [
        (5, None, (5, -1), 5),
        (5, 10, (5, 10), 10),
        (5, 10, (10, -1), 10),
        (5, 10, (5, -1), 5),  # the other one was killed before it wrote its new one
        (10, None, (5, 10), 10),
        (None, 5, (-1, -1), None),  # the first checkpoint ever
        (None, None, (-1, -1), None),
    ],
)
def test_all_go_on_from_the_latest_step_that_each_has(tmp_path, old, new, others, found):
    own = RunFolder(tmp_path, Place(0, 2), Others(*others))
    for name, step in (("checkpoint.safetensors", old), ("next.safetensors", new)):
        if step is not None:
            own.path.parent.mkdir(exist_ok=True)
            worker.run_folder.write_checkpoint(own.path.with_name(name), {}, {"run": {"steps": step}})
    checkpoint = own.read()
    assert (checkpoint and checkpoint.parts["run"]["steps"]) == found
    assert has_checkpoint(tmp_path) == own.path.parent.exists()
