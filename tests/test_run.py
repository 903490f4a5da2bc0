"""Runs of training: killed at any step they go on to the same bits, and what goes wrong leaves the last checkpoint."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gemlens.data.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from gemlens.errors import InputError, OutputError, WeightsError
from gemlens.scope.load import load_clt, load_sae
from gemlens.scope.multilayer import MultiLayer
from gemlens.sites import parse_site
from gemlens.study.fidelity import rows_of
from gemlens.train import run as run_module
from gemlens.train.config import FitConfig
from gemlens.train.fit import fit
from gemlens.train.names import named
from gemlens.train.run import train
from gemlens.train.stream import ShuffledStream, harvest
from tiny import tiny_gemma

BATCH, STEPS = 32, 40
TEXT = ["the cat and the dog sat in the sun. ", "then the man sang and the hat fell in the sand. "] * 150
READS = ("resid_post.1", "resid_post.3")
PATHS = [f"resid_post/layer_{layer}_width_24_l0_small" for layer in (1, 3)]


RESULTS = ("config.json", "curves.csv", "params.safetensors")


class Killed(Exception):
    """As sudden as kill -9, as far as what is on disk goes."""


def config(reads, **changes):
    settings = {"width": 24, "l0": 4, "tokens": BATCH * STEPS, "batch": BATCH, "dead_after": 200}
    return FitConfig(reads=reads, **{**settings, **changes})


CONFIGS = [config(READS[0], activation="jumprelu"), config(READS[1], activation="batchtopk", groups=(8,))]


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    monkeypatch.setattr(run_module, "SAMPLE", 6 * BATCH)


def stream_of(model, sites=READS, *, text=TEXT, batch=BATCH):
    source = harvest(model, lambda: rows_of(model, text, length=32), [parse_site(site) for site in sites], together=4)
    return ShuffledStream(source, batch=batch, buffer=300)


def go(model, folder, configs=CONFIGS, **settings):
    return train(stream_of(model), configs, folder, **{"checkpoint_every": 0, **settings})


def stop_at(kill):
    def report(steps):
        if next(iter(steps.values())).step == kill:
            raise Killed

    return report


def results(folder):
    return {(path, name): (folder / path / name).read_bytes() for path in PATHS for name in RESULTS}


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "SAMPLE", 6 * BATCH)
        trained = go(model, folder, checkpoint_every=1e9)
    return folder, trained


def test_several_dictionaries_come_from_one_pass_over_the_stream(model, unbroken, tmp_path):
    folder, trained = unbroken
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == sorted(
        [CHECKPOINT]
        + [
            f"{path}/{name}"
            for path in PATHS
            for name in ("config.json", "params.safetensors", "training.json", "curves.csv")
        ]
    )
    for path, given, record in zip(PATHS, CONFIGS, trained, strict=True):
        sae = load_sae(str(folder), path)
        assert (str(sae.reads), sae.width) == (given.reads[0], 24)
        about = json.loads((folder / path / "training.json").read_text())
        assert FitConfig(**about["config"]) == given
        assert (about["tokens"], record.tokens) == (BATCH * STEPS, BATCH * STEPS)
        rows = np.loadtxt(folder / path / "curves.csv", delimiter=",", skiprows=1)
        assert rows[:, 0].tolist() == list(range(1, STEPS + 1))
        assert rows[-1, 3] < rows[0, 3]
        np.testing.assert_allclose(rows, record.curves, rtol=1e-4)


def test_a_run_trains_what_fit_trains(model, unbroken, monkeypatch):
    """One learner, one stream, no checkpoints: the same dictionary."""
    monkeypatch.setattr("gemlens.train.fit.SAMPLE", 6 * BATCH)
    for path, given in zip(PATHS, CONFIGS, strict=True):
        alone = fit(stream_of(model), given)
        stored = load_sae(str(unbroken[0]), path)
        assert torch.equal(stored.b_dec, alone.b_dec.bfloat16().float())
        assert torch.equal(stored.threshold, alone.threshold.bfloat16().float())


@pytest.mark.parametrize("kills", [[1], [6], [7], [13, 14, 30], [STEPS - 1], [STEPS]])
def test_killed_at_any_step_it_goes_on_to_the_same_bits(model, unbroken, tmp_path, kills):
    """In the sample, at its end, at the refill of the buffer, in the last step."""
    for kill in kills:
        with pytest.raises(Killed):
            go(model, tmp_path, report=stop_at(kill))
    seen = []
    go(model, tmp_path, report=lambda steps: seen.append(next(iter(steps.values())).step))
    # What was done before the last checkpoint is not done again.
    assert seen == list(range(kills[-1] if kills[-1] > 6 else 1, STEPS + 1))
    assert results(tmp_path) == results(unbroken[0])
    finished = go(model, tmp_path, report=lambda _: pytest.fail("it was done"))
    assert results(tmp_path) == results(unbroken[0])
    assert [record.tokens for record in finished] == [BATCH * STEPS] * 2


PROCESS = """
import sys, time
sys.path[:0] = {path!r}
import torch; torch.set_num_threads(1)
from pathlib import Path
import test_run
from tiny import tiny_gemma
test_run.run_module.SAMPLE = 6 * test_run.BATCH
slow = lambda _: time.sleep(0.02)
test_run.go(tiny_gemma(), Path(sys.argv[1]), report=slow, checkpoint_every=0.05, say=lambda l: print(l, flush=True))
"""


def start(folder):
    code = PROCESS.format(path=[str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, folder):
    deadline = time.monotonic() + 60
    while not (folder / CHECKPOINT).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_process_killed_by_force_goes_on_to_the_same_bits(model, unbroken, tmp_path):
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    said = []
    go(model, tmp_path, say=said.append)
    assert said[0].startswith("going on at ")
    assert results(tmp_path) == results(unbroken[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_saves_first(model, unbroken, tmp_path, number, code):
    """In this process: the signal arrives in the middle of a run."""
    before = signal.getsignal(number)

    def report(steps):
        if next(iter(steps.values())).step == 17:
            os.kill(os.getpid(), number)

    said = []
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as left:
        go(model, tmp_path, report=report, checkpoint_every=1e9, say=said.append)
    if number == signal.SIGTERM:
        assert left.value.code == code
    assert signal.getsignal(number) == before
    assert said[0].startswith("stopping after this step")
    assert read_checkpoint(tmp_path / CHECKPOINT).parts["run"]["steps"] == 17
    go(model, tmp_path)
    assert results(tmp_path) == results(unbroken[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1e-3}, "lr 0.004 there, 0.001 asked for"),
        ({"width": 32}, "width 24 there, 32 asked for"),
        ({"activation": "topk"}, "activation jumprelu there, topk asked for"),
        ({"groups": (4,)}, "groups nothing there, [4] asked for"),
        ({"reads": "resid_post.2"}, "reads resid_post.1 there, resid_post.2 asked for"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(model, unbroken, changes, words):
    before = results(unbroken[0])
    first = config(**{"reads": READS[0], "activation": "jumprelu", **changes})
    with pytest.raises(InputError, match=re.escape(words)):
        go(model, unbroken[0], [first, CONFIGS[1]])
    assert results(unbroken[0]) == before


def test_a_checkpoint_of_another_source_or_number_is_refused(model, tmp_path, unbroken):
    with pytest.raises(Killed):
        go(model, tmp_path, source={"model": "a", "texts": [{"name": "x"}]}, report=stop_at(9))
    with pytest.raises(InputError, match="model a there, b asked for"):
        go(model, tmp_path, source={"model": "b", "texts": [{"name": "x"}]})
    with pytest.raises(InputError, match="name x there, y asked for"):
        go(model, tmp_path, source={"model": "a", "texts": [{"name": "y"}]})
    with pytest.raises(InputError, match="is of another run: configs"):
        go(model, unbroken[0], CONFIGS[:1])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(model, tmp_path):
    class Poisoned:
        def __init__(self, stream):
            self.stream, self.state, self.restore = stream, stream.state, stream.restore

        def __iter__(self):
            for number, batch in enumerate(self.stream):
                yield {site: x * float("inf") if number == 20 else x for site, x in batch.items()}

    with pytest.raises(WeightsError) as error:
        train(Poisoned(stream_of(model)), CONFIGS, tmp_path, checkpoint_every=0)
    assert f"the checkpoint of {20 * BATCH} tokens is kept" in str(error.value)
    assert PATHS[0] in str(error.value)
    assert "\n" not in str(error.value)
    assert read_checkpoint(tmp_path / CHECKPOINT).parts["run"]["steps"] == 20
    assert not (tmp_path / "resid_post").exists()


def test_a_full_disk_leaves_the_old_checkpoint(model, tmp_path, unbroken, monkeypatch):
    kept = []

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def report(steps):
        if next(iter(steps.values())).step == 12:
            kept.append((tmp_path / CHECKPOINT).read_bytes())
            monkeypatch.setattr("gemlens.files.os.fsync", full)

    with pytest.raises(OutputError, match="No space left on device; free some space"):
        go(model, tmp_path, report=report)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == kept[0]
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "SAMPLE", 6 * BATCH)
    go(model, tmp_path)
    assert results(tmp_path) == results(unbroken[0])


@pytest.mark.parametrize("documents", [14, 4])
def test_text_that_ends_early_says_how_much_there_was(model, tmp_path, documents):
    """After the sample, and within it."""
    stream = stream_of(model, text=TEXT[:documents])
    with pytest.raises(InputError) as error:
        train(stream, CONFIGS, tmp_path)
    steps = read_checkpoint(tmp_path / CHECKPOINT).parts["run"]["steps"]
    assert (steps < 6) == (documents == 4)
    assert f"the corpus gave {steps * BATCH:,} tokens, {STEPS * BATCH:,} were asked for" in str(error.value)
    assert "kept" in str(error.value)


def test_what_cannot_be_trained_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="the corpus is empty"):
        train(stream_of(model, text=[]), CONFIGS, tmp_path / "a")
    with pytest.raises(InputError, match=r"no activations of resid_post\.3"):
        train(stream_of(model, READS[:1]), CONFIGS, tmp_path / "b")
    with pytest.raises(InputError, match="batches of 32 and 64"):
        train(stream_of(model), [CONFIGS[0], config(READS[1], batch=64)], tmp_path / "c")
    with pytest.raises(InputError, match="gives batches of 16 tokens, the configs say 32"):
        train(stream_of(model, batch=16), CONFIGS, tmp_path / "d")
    with pytest.raises(InputError, match="two dictionaries would be called"):
        train(stream_of(model), [CONFIGS[0], CONFIGS[0]], tmp_path / "e")
    with pytest.raises(InputError, match="nothing to train"):
        train(stream_of(model), [], tmp_path / "f")
    (tmp_path / "g").mkdir()
    (tmp_path / "g/thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files, thesis\.tex among them"):
        train(stream_of(model), CONFIGS, tmp_path / "g")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99])
def test_a_damaged_checkpoint_is_told(model, tmp_path, unbroken, damage):
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage((unbroken[0] / CHECKPOINT).read_bytes()))
    with pytest.raises(WeightsError, match="is no whole checkpoint"):
        go(model, tmp_path)


def test_a_checkpoint_is_a_safetensors_file_and_comes_back_as_it_was(tmp_path):
    state = {
        "half": torch.randn(3, 2).bfloat16(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "wide": torch.randn(2, dtype=torch.float64),
        "long": torch.arange(3),
        "turned": torch.randn(4, 3).T,
        "none": torch.empty(0, 7),
        "scalar": torch.tensor(3.5),
        "number": 0.1 + 0.2,
        "count": 7,
    }
    path = tmp_path / CHECKPOINT
    write_checkpoint(path, {"what": ["a", None]}, {"a b/c": state, "other": {"x": torch.ones(1)}})
    about, parts = read_checkpoint(path)
    assert about == {"what": ["a", None]}
    assert parts["other"]["x"].tolist() == [1]
    assert parts["a b/c"].keys() == state.keys()
    for name, value in state.items():
        back = parts["a b/c"][name]
        same = back == value if not isinstance(value, torch.Tensor) else torch.equal(back, value)
        assert same and type(back) is type(value), name
        assert getattr(back, "dtype", None) == getattr(value, "dtype", None)
    with safe_open(path, framework="np") as file:
        assert "gemlens" in file.metadata()
    assert read_checkpoint(tmp_path / "none") is None


TRANSCODERS = [
    config(f"mlp_in.{layer}", writes=f"mlp_out.{layer}", kind="transcoder", skip=True, l0=60, width=64)
    for layer in (2, 4)
]
CLT = config(("mlp_in.2", "mlp_in.4"), writes=("mlp_out.2", "mlp_out.4"), kind="clt", skip=True)


def test_names_are_those_of_gemma_scope_2():
    configs = [
        config("resid_post.5", width=4096, l0=50),
        config("resid_mid.5", width=16384, l0=120),
        config("attn_out.0", width=5000, l0=20),
        TRANSCODERS[0],
        CLT,
        config(("mlp_in.0", "mlp_in.1"), writes=("mlp_out.0", "mlp_out.1"), kind="clt", width=1024),
    ]
    assert list(named(configs)) == [
        "resid_post/layer_5_width_4k_l0_medium",
        "resid_mid/layer_5_width_16k_l0_big",
        "attn_out/layer_0_width_5000_l0_small",
        "transcoder/layer_2_width_64_l0_medium_affine",
        "clt/layers_2_4_width_48_l0_small_affine",
        "clt/width_2k_l0_small",
    ]
    assert list(named(TRANSCODERS[:1], "transcoder_all")) == ["transcoder_all/layer_2_width_64_l0_medium_affine"]


def test_transcoders_and_a_clt_load_and_reconstruct(tmp_path, monkeypatch):
    """As the dictionaries that ``fit`` makes of the same batches."""
    monkeypatch.setattr("gemlens.train.fit.SAMPLE", 6 * BATCH)
    model = tiny_gemma()
    sites = [f"{name}.{layer}" for layer in (2, 4) for name in ("mlp_in", "mlp_out")]
    configs = named([*TRANSCODERS, CLT])
    train(stream_of(model, sites), configs, tmp_path, model_name="a/b", save_dtype=torch.float32)
    found = {parse_site(site): torch.randn(9, 16, generator=torch.Generator().manual_seed(1)) for site in sites}
    for path, given in configs.items():
        alone = fit(stream_of(model, sites), given)
        stored = (load_clt if given.kind == "clt" else load_sae)(str(tmp_path), path)
        assert stored.info.model_name == "a/b"
        if isinstance(stored, MultiLayer):
            assert (stored.reads, stored.writes) == (given.sites_read, given.sites_written)
            x = {site: found[site] for site in stored.reads}
            ours, theirs = (each.reconstruct(x) for each in (stored, alone))
            assert all(torch.equal(ours[site], theirs[site]) for site in stored.writes)
        else:
            assert (stored.reads, stored.writes) == (given.sites_read[0], given.sites_written[0])
            assert stored.skip is not None
            x = found[stored.reads]
            assert torch.equal(stored.reconstruct(x), alone.reconstruct(x))
