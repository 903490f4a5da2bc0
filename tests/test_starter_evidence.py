"""The evidence that the starter ships: small, of this model and these dictionaries, and what a direct count finds."""

import json
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gemlens.lm.gemma import activations
from gemlens.scope.listing import listing
from gemlens.scope.load import load_sae
from gemlens.scope.starter import STARTER_DICTIONARY, starter_root
from gemlens.study.decoder_rows import top_logits
from gemlens.study.firing import half_octaves

pytest.importorskip("gemlens_starter", reason="the starter's data is not installed: pip install ./starter")

ROOT = starter_root()
if not (ROOT / "tokens.safetensors").exists():
    pytest.skip("the installed starter has no evidence; make evidence collects it", allow_module_level=True)

PATHS = [each.path for each in listing("starter")]
TRANSCODER = "transcoder_all/layer_4_width_2k_l0_small_affine"


@cache
def tokens():
    return load_file(ROOT / "tokens.safetensors")["tokens"]


def evidence(path):
    return load_file(ROOT / path / "examples.safetensors") | load_file(ROOT / path / "statistics.safetensors")


def about(path):
    with safe_open(ROOT / path / "examples.safetensors", "pt") as file:
        return json.loads(file.metadata()["gemlens"]), file.metadata()["tokens"]


def test_all_dictionaries_have_it_and_it_is_small():
    files = [ROOT / path / f"{name}.safetensors" for path in PATHS for name in ("examples", "statistics")]
    assert len(PATHS) == 22 and all(file.is_file() for file in files)
    assert sum(file.stat().st_size for file in [*files, ROOT / "tokens.safetensors"]) <= 20e6


@pytest.mark.parametrize("path", PATHS)
def test_it_is_of_this_dictionary_and_says_so(path):
    found, (said, where) = evidence(path), about(path)
    width = load_sae("starter", path).width
    assert (said["model_id"], said["dictionary"], where) == ("starter", path, "../../tokens.safetensors")
    assert found["activations"].shape == (width, 16) == found["positions"].shape == found["seq_ids"].shape
    assert 250_000 < said["tokens"] < 400_000
    fired = found["feature_frequencies"] > 0
    assert ((found["seq_ids"] >= 0).sum(1)[fired] > 0).all() and (found["seq_ids"][~fired] == -1).all()
    assert (found["activations"].float().diff(dim=1) <= 0).all()
    assert int(found["seq_ids"].max()) < len(tokens()) and int(found["positions"].max()) < tokens().shape[1]
    assert (found["positions"][found["seq_ids"] >= 0] > 0).all()  # never BOS
    counts = found["position_profile"].long().sum(1)
    assert torch.equal(counts, found["histogram"].long().sum(1))
    assert torch.allclose(counts / said["tokens"], found["feature_frequencies"], atol=1e-6)


@pytest.mark.parametrize("path", [STARTER_DICTIONARY, TRANSCODER])
def test_its_activations_are_what_the_model_computes(starter, path):
    """Read anew, the sequences of some features' examples give those activations at those places."""
    found, sae = evidence(path), load_sae("starter", path)
    chosen = [feature for feature in range(0, sae.width, sae.width // 12) if found["seq_ids"][feature, 0] >= 0]
    rows = found["seq_ids"][chosen, :1].long()
    read = activations(starter, tokens()[rows[:, 0]].long(), [sae.reads])[sae.reads]
    for feature, x in zip(chosen, read, strict=True):
        position = int(found["positions"][feature, 0])
        values = sae.encode(x[1:]).select([feature])[:, 0]
        expected = float(found["activations"][feature, 0])
        assert float(values[position - 1]) == pytest.approx(expected, rel=0.02)
        assert float(values.max()) <= expected * 1.02  # the strongest of the whole text


def test_histograms_and_frequencies_agree_with_a_direct_count_of_sequences_that_are_there(starter):
    """Of the text, 32 rows are read again: no count exceeds, and no activation lies above, what was counted of all."""
    found, sae = evidence(STARTER_DICTIONARY), load_sae("starter", STARTER_DICTIONARY)
    x = activations(starter, tokens()[:32].long(), [sae.reads])[sae.reads][:, 1:].flatten(0, 1)
    features = sae.encode(x)
    fired = torch.bincount(features.ids, minlength=sae.width)
    counted = found["position_profile"].long().sum(1)
    # Rounding may push a feature over its threshold that another shape of batch left below.
    assert ((fired - counted) > 1).sum() == 0
    share = fired.double() / len(x)
    common = found["feature_frequencies"] > 0.01
    assert float(torch.corrcoef(torch.stack([share, found["feature_frequencies"].double()])[:, common])[0, 1]) > 0.8
    above = half_octaves(features.values.float()) - found["histogram_top"].long()[features.ids]
    assert (above > 0).float().mean() < 1e-4


def test_its_tokens_are_what_the_decoder_promotes(starter):
    found, sae = evidence(STARTER_DICTIONARY), load_sae("starter", STARTER_DICTIONARY)
    chosen = torch.tensor([0, 7, 1234])
    again = top_logits(starter, sae, sae.decoder.rows(chosen), 10)
    for name in ("top", "bottom"):
        assert torch.allclose(found[f"{name}_logits"][chosen].float(), again[f"{name}_logits"], atol=5e-3)
        assert torch.equal(found[f"{name}_tokens"][chosen, 0].long(), again[f"{name}_tokens"][:, 0])
