"""The dictionaries that the starter ships, whichever they are: their size, their cards, and all of them in one go."""

import json
import os

import pytest
import torch

from cli_helpers import report, run
from gemlens.scope.listing import listing
from gemlens.scope.load import load_sae
from gemlens.scope.starter import STARTER_DICTIONARY, starter_root
from gemlens.study.fit_check import check_fit
from measure_starter import measure

pytest.importorskip("gemlens_starter", reason="the starter's data is not installed: pip install ./starter")

PATHS = [each.path for each in listing("starter")]
# The suite's minutes go to few transcoders; tools/measure_starter.py measures all.
MEASURED = [path for path in PATHS if path.startswith("resid_post/") or "/layer_4_" in path or "/layer_13_" in path]
COMPARED = {
    "sae": ("l0", "variance_explained", "ce_clean", "ce_above_clean"),
    "transcoder": ("l0", "fvu", "ce_recovered", "ce_recovered_mean"),
}


def card_of(path):
    return json.loads((starter_root() / path / "card.json").read_text("utf-8"))


EVIDENCE = {"examples.safetensors", "statistics.safetensors", "tokens.safetensors"}


def test_they_are_small_enough_to_ship():
    files = [file for file in starter_root().rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    evidence = sum(file.stat().st_size for file in files if file.name in EVIDENCE)
    assert evidence <= 20e6
    assert sum(file.stat().st_size for file in files) - evidence <= 80e6


def test_there_are_saes_at_four_layers_and_transcoders_at_all():
    saes = [f"resid_post/layer_{layer}_width_4k_l0_medium" for layer in (5, 9, 12, 15)]
    assert set(PATHS) == {*saes, *(f"transcoder_all/layer_{layer}_width_2k_l0_small_affine" for layer in range(18))}


def test_the_default_is_among_them_and_all_fit_the_model(starter):
    assert STARTER_DICTIONARY in PATHS
    for path in PATHS:
        assert check_fit(starter, load_sae("starter", path)) == []


@pytest.fixture
def all_threads():
    """The real model, unlike the tiny ones, gains from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def test_their_cards_tell_the_truth(starter, all_threads):
    """Figures on text that ships with the tests, taken again."""
    dictionaries = [load_sae("starter", path) for path in MEASURED]
    for path, dictionary, found in zip(MEASURED, dictionaries, measure(starter, dictionaries), strict=True):
        told = card_of(path)["public_slice"]
        assert 20_000 < found["tokens_measured"] == told["tokens_measured"]
        for name in COMPARED["transcoder" if dictionary.is_transcoder else "sae"]:
            assert found[name] == pytest.approx(told[name], rel=0.02), (path, name)


def test_every_card_has_such_figures():
    for path in PATHS:
        kind = "sae" if path.startswith("resid_post/") else "transcoder"
        assert set(COMPARED[kind]) <= card_of(path)["public_slice"].keys(), path


def test_all_of_them_at_once(capsys, tmp_path):
    """SAEs and transcoders of any layers, in one analysis."""
    ids = [part for path in PATHS for part in ("--sae-id", path)]
    ran = run(
        capsys, "analyze", "--model-id", "starter", *ids, "--prompt", "The Eiffel Tower stands in Paris, in France.",
        "--max-new-tokens", 0, "--export", "json", "--out-dir", tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "warning" not in ran.err
    found = report(tmp_path)
    names = [f"{each['category']}/{each['id']}" for each in found["dictionaries"]]
    assert names == PATHS
