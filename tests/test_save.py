"""Saving a dictionary: what is written reads back, whole or not at all."""

import json
import stat

import pytest
import torch

from gemlens.errors import OutputError
from gemlens.scope.load import load_sae
from gemlens.scope.save import save_sae
from gemlens.sites import parse_site
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
