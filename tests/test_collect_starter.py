"""Evidence of the starter, against counts over transformers' own hidden states and one dense product in float32.

Rounding may carry an activation that lies within 1 in 1,000 of its threshold, or of a histogram's edge, to the other
side; all others are counted as they are.
"""

from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemlens.data.corpus import documents, pack
from gemlens.data.mix import mixed
from gemlens.lm.load import load_model
from gemlens.lm.text import encode_documents
from gemlens.scope.load import load_sae
from gemlens.study.collect import collect_features

ID = "resid_post/layer_12_width_4k_l0_medium"
ROW, ROWS = 128, 32
CLOSE = 1e-3


@pytest.fixture(scope="module")
def float32(starter):
    """Two passes of a bfloat16 model differ by more than what is close here."""
    return load_model("starter", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def sae():
    return load_sae("starter", ID)


@pytest.fixture(scope="module")
def made(float32, sae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    collect_features(
        float32, [sae], texts(), folder, tokens=ROWS * (ROW - 1), row_length=ROW, examples=4, quantiles=0, logits=False
    )
    return load_file(folder / ID / "examples.safetensors") | load_file(folder / ID / "statistics.safetensors")


@pytest.fixture(scope="module")
def activations(float32, sae):
    """[ROWS, ROW - 1, width], and where rounding may decide whether a feature fires."""
    packed = pack(mixed(texts(), 0), lambda group: encode_documents(float32, group), bos=2, length=ROW)
    rows = torch.stack([torch.from_numpy(row) for row in islice(packed, ROWS)])
    with torch.no_grad():
        x = [float32.module(part, output_hidden_states=True).hidden_states[13][:, 1:] for part in rows.split(8)]
        weight = torch.cat([block for _, block in sae.encoder.blocks()]).float()
        before = torch.cat(x).float() @ weight.T + sae.b_enc
    at = sae.threshold
    return before * (before > at), (before - at).abs() < CLOSE * at.clamp(min=1)


def texts():
    return documents([Path(__file__).parent / "texts/slice.txt"])


def test_frequencies_and_profiles_are_a_direct_count(made, activations):
    dense, unsure = activations
    fires = dense > 0
    may_differ = unsure.flatten(0, 1).sum(0)
    counted = (made["feature_frequencies"] * fires.flatten(0, 1).shape[0]).round()
    assert ((counted - fires.flatten(0, 1).sum(0)).abs() <= may_differ).all()
    assert (may_differ == 0).float().mean() > 0.9, "nearly all counts are held to be equal"
    assert counted.sum() > 10 * ROWS * ROW
    third = torch.arange(ROW - 1) * 3 // (ROW - 1)
    for part in range(3):
        expected = fires[:, third == part].sum(dim=(0, 1))
        assert ((made["position_profile"][:, part] - expected).abs() <= may_differ).all()


def test_histograms_are_a_direct_count(made, activations):
    dense, unsure = activations
    flat, unsure = dense.flatten(0, 1), unsure.flatten(0, 1)
    halves = 2 * flat.clamp(min=1e-30).log2()
    near_an_edge = ((halves - halves.round()).abs() < 2 * CLOSE * 2) & (flat > 0)
    may_differ = (unsure | near_an_edge).sum(0)
    exact = 0
    for feature in range(flat.shape[1]):
        values = flat[:, feature][flat[:, feature] > 0]
        expected = torch.zeros(made["histogram"].shape[1], dtype=torch.int64)
        if len(values):
            bins = int(made["histogram_top"][feature]) - (2 * values.double().log2()).floor().long()
            expected = torch.bincount(bins.clamp(0, len(expected) - 1), minlength=len(expected))
        off = int((made["histogram"][feature] - expected).abs().sum())
        assert off <= 2 * int(may_differ[feature]), feature
        exact += off == 0 and len(values) > 0
    assert exact > 2000


def test_examples_are_the_strongest(made, activations):
    best = activations[0].flatten(0, 1).max(dim=0).values
    assert torch.allclose(made["activations"][:, 0].float(), best, rtol=CLOSE, atol=1e-2)
