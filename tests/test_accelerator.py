"""On a GPU everything finds what it finds on the CPU, to rounding. Skipped where there is none."""

import contextlib

import pytest
import torch

from cli_helpers import make_world, run
from gemlens.data.checkpoint import CHECKPOINT
from gemlens.lm.load import load_model
from gemlens.scope.load import load_sae
from gemlens.sites import parse_site
from gemlens.study.analyze import analyze, analyze_many
from gemlens.study.fidelity import fidelity, rows_of
from gemlens.study.set_fidelity import set_fidelity
from gemlens.train import run as run_module
from gemlens.train.fit import fit
from gemlens.train.learner import Learner
from gemlens.train.run import train
from gemlens.train.stream import ShuffledStream, harvest
from planted import decoder, directions, planted, recovered, small
from tiny import random_clt, random_tensors, random_transcoders, tiny_model_folder, write_dictionary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
TEXT = ["the cat and the dog sat in the sun. ", "then the man sang and the hat fell in the sand. "] * 150
NAME = "resid_post/layer_2_width_40_l0_small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("accelerator")
    tiny_model_folder(path / "model")
    write_dictionary(path / "scope" / NAME, random_tensors(16, 40))
    return path


@pytest.fixture(scope="module")
def both(folder):
    """Model and dictionary on the CPU, and on the GPU."""
    models = [load_model(str(folder / "model"), device=device, dtype="float32") for device in ("cpu", "cuda")]
    return [(model, load_sae(str(folder / "scope"), NAME, device=model.device)) for model in models]


def test_features_are_those_of_the_cpu(both):
    ours, theirs = (analyze(*each, "the cat sat and sang in the sun") for each in both)
    assert theirs.provenance.device.startswith("cuda")
    for token, other in zip(ours.tokens, theirs.tokens, strict=True):
        assert [each.feature_id for each in token.features] == [each.feature_id for each in other.features]
        assert [e.activation for e in token.features] == pytest.approx([e.activation for e in other.features], rel=1e-4)
    many = [list(analyze_many(*each, ["the cat", "the dog sat in the sun"])) for each in both]
    assert [[t.l0 for t in each.tokens] for each in many[0]] == [[t.l0 for t in each.tokens] for each in many[1]]
    assert all(len(analyze(*each, "the cat", max_new_tokens=4, greedy=True).tokens) > 4 for each in both)


def test_fidelity_is_that_of_the_cpu(both):
    cpu, cuda = (fidelity(*each, TEXT, mix=TEXT) for each in both)
    for name in ("l0", "fvu", "cosine", "ce_clean", "ce_recovered", "ce_recovered_mean"):
        assert getattr(cuda, name) == pytest.approx(getattr(cpu, name), rel=1e-3), name
    assert (cuda.dead, cuda.silent) == (cpu.dead, cpu.silent)


@pytest.mark.parametrize("make", [random_transcoders, random_clt])
def test_all_transcoders_at_once_are_those_of_the_cpu(both, make):
    cpu, cuda = (set_fidelity(model, _on(make(model), model.device), TEXT) for model, _ in both)
    for name in ("kl", "agreement", "ce_clean"):
        assert getattr(cuda, name) == pytest.approx(getattr(cpu, name), rel=1e-2), name
    assert max(cpu.logit_error, cuda.logit_error) <= 1e-4


def _on(transcoders, device):
    return [each.to(device) for each in transcoders] if isinstance(transcoders, list) else transcoders.to(device)


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "topk"])
def test_steps_are_those_of_the_cpu(activation):
    config = small(activation=activation, tokens=2560, dead_after=300)
    x = planted(config.tokens)
    site = config.sites_read[0]
    learners = [Learner(config, {site: x}, dtype=torch.float32, device=device) for device in ("cpu", "cuda")]
    for batch in x.split(config.batch):
        cpu, cuda = (learner.step({site: batch}) for learner in learners)
        assert cuda == pytest.approx(cpu, rel=1e-4)
    ours, theirs = (decoder(learner.finish()).cpu() for learner in learners)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_planted_features_are_found():
    config = small()
    sae = fit(planted(config.tokens).split(config.batch), config, device="cuda")
    assert sae.b_enc.device.type == "cuda"
    assert recovered(directions(), decoder(sae).cpu()) >= 0.9


def test_a_run_is_stopped_and_goes_on_beside_its_model(both, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "SAMPLE", 6 * 32)
    model = both[1][0]
    config = small(width=24, l0=4, tokens=32 * 40, batch=32, dead_after=200)

    def stream():
        source = harvest(model, lambda: rows_of(model, TEXT, length=32), [parse_site("resid_post.1")], together=4)
        return ShuffledStream(source, batch=32, buffer=300)

    def stop(steps):
        if next(iter(steps.values())).step == 25:
            raise InterruptedError

    whole = train(stream(), [config], tmp_path / "whole", device="cuda")
    with contextlib.suppress(InterruptedError):
        train(stream(), [config], tmp_path / "parts", device="cuda", checkpoint_every=0, report=stop)
    assert (tmp_path / "parts" / CHECKPOINT).exists()
    parts = train(stream(), [config], tmp_path / "parts", device="cuda")
    # Sums of a GPU are not the same to the bit each time.
    assert parts[0].last("fvu") == pytest.approx(whole[0].last("fvu"), rel=0.05)


def test_the_command_trains_and_measures_there(capsys, tmp_path, monkeypatch, no_token):
    world = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the cat and the dog sat in the sun. " * 1000)
    (tmp_path / "b.txt").write_text("then the man sang, and the hat fell in the sand. " * 400)
    ran = run(
        capsys, "train", "sae", "--model-id", world.model, "--texts", "a.txt", "--held-out", "b.txt",
        "--out", "trained", "--sites", "resid_post.1,resid_post.3", "--width", "32", "--l0", "4",
        "--tokens", "20k", "--passes", "4", "--batch", "64", "--row-length", "32", "--buffer", "512",
        "--device", "cuda",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert (tmp_path / "trained/resid_post/layer_3_width_32_l0_small/card.json").exists()
