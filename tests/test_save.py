"""Saving a dictionary: what is written reads back, whole or not at all."""

import json
import stat

import pytest
import torch

from gemlens.errors import InputError, OutputError, WeightsError
from gemlens.scope.load import load_clt, load_crosscoder, load_sae
from gemlens.scope.save import save_multilayer, save_sae
from gemlens.sites import Site, parse_site
from layouts import CROSSCODER, D, random_layers, write_layers
from tiny import random_tensors, sae_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_transcoder_reads_back(tmp_path, dtype):
    tensors = random_tensors(6, 20, d_out=5, skip=True)
    sae = sae_of(tensors, parse_site("mlp_in.3"), parse_site("mlp_out.3"), model_name="google/gemma-3-tiny")
    save_sae(sae, tmp_path / "transcoder/made", l0=7.4, dtype=dtype)
    back = load_sae(str(tmp_path), "transcoder/made")
    assert (str(back.reads), str(back.writes), back.info.model_name) == ("mlp_in.3", "mlp_out.3", "google/gemma-3-tiny")
    x = torch.randn(9, 6)
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(dtype).float()
    assert torch.equal(back.reconstruct(x), sae_of(tensors, sae.reads, sae.writes).reconstruct(x))
    config = json.loads((tmp_path / "transcoder/made/config.json").read_text("utf-8"))
    assert (config["l0"], config["type"], config["affine_connection"]) == (7, "transcoder", True)
    assert stat.S_IMODE((tmp_path / "transcoder/made/params.safetensors").stat().st_mode) == 0o644


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    sae = sae_of(random_tensors(6, 20), parse_site("resid_post.3"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        save_sae(sae, folder, l0=5)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        save_sae(sae, tmp_path / "other", l0=5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_saved_clt_of_some_layers_reads_back(tmp_path, skip):
    """Its hook points come from the config: without them, the layers would be 0, 1 and 2."""
    name = "clt/layers_2_3_5_width_51"
    write_layers(tmp_path / "first" / name, random_layers(skip=skip))
    hooks = {
        f"hf_hook_point_{side}": [Site(layer, f"mlp_{side}").hf_hook_point for layer in (2, 3, 5)]
        for side in ("in", "out")
    }
    (tmp_path / "first" / name / "config.json").write_text(json.dumps(hooks))
    clt = load_clt(str(tmp_path / "first"), name)
    assert [str(site) for site in clt.reads + clt.writes] == [f"mlp_{x}.{n}" for x in ("in", "out") for n in (2, 3, 5)]
    save_multilayer(clt, tmp_path / "second" / name, l0=7.4, dtype=torch.float32)
    back = load_clt(str(tmp_path / "second"), name)
    assert (back.reads, back.writes) == (clt.reads, clt.writes)
    x = dict(zip(clt.reads, torch.randn(3, 9, D), strict=True))
    ours, theirs = back.reconstruct(x), clt.reconstruct(x)
    assert all(torch.equal(ours[site], theirs[site]) for site in clt.writes)
    config = json.loads((tmp_path / "second" / name / "config.json").read_text("utf-8"))
    assert (config["type"], config["l0"], config["width"], config["affine_connection"]) == ("clt", 7, 51, skip)
    config["hf_hook_point_in"].pop()
    (tmp_path / "second" / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="of the layers 2_3, its tensors are of 3 layers"):
        load_clt(str(tmp_path / "second"), name)


def test_a_crosscoder_is_no_clt(tmp_path):
    write_layers(tmp_path / CROSSCODER, random_layers())
    with pytest.raises(InputError, match="names its layers"):
        save_multilayer(load_crosscoder(str(tmp_path), CROSSCODER), tmp_path / "clt/made", l0=5)
