"""Loading a dictionary holds its tensors once: the peak of a process that loads, less that of one that imports.

The peak is what the kernel calls VmHWM: file pages that are mapped count like any others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")

D, WIDTH = 1024, 24 * 1024  # two matrices of 100 MB in float32
CODE = """
import re, sys
from pathlib import Path
import torch, numpy, safetensors, yaml, zipfile
import gemlens.scope.load as load
torch.set_num_threads(1)
loaded = None
if len(sys.argv) > 1:
    loaded = getattr(load, sys.argv[1])(sys.argv[2])
    print(loaded.nbytes, end=" ")
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def child(*arguments):
    run = subprocess.run([sys.executable, "-c", CODE, *map(str, arguments)], capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


@pytest.fixture(scope="module")
def imports_only():
    return child()[0]


def tensors(dtype=torch.float32, names="w_enc w_dec b_enc b_dec threshold"):
    shapes = [(D, WIDTH), (WIDTH, D), (WIDTH,), (D,), (WIDTH,)]
    return {name: torch.full(shape, 0.5, dtype=dtype) for name, shape in zip(names.split(), shapes, strict=True)}


def gemma_scope_2(folder, dtype):
    folder /= "resid_post/layer_2_width_16k_l0_small"
    folder.mkdir(parents=True)
    save_file(tensors(dtype), folder / "params.safetensors")
    return "load_sae", folder


def gemma_scope_1(folder, save):
    folder /= "gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_7"
    folder.mkdir(parents=True)
    save(folder / "params.npz", **{k: v.numpy() for k, v in tensors(names="W_enc W_dec b_enc b_dec threshold").items()})
    return "load_sae", folder


def saelens(folder, _):
    """With everything that is folded into the weights."""
    named = tensors(names="W_enc W_dec b_enc b_dec threshold")
    named.pop("threshold")
    save_file(named, folder / "sae_weights.safetensors")
    options = '"apply_b_dec_to_input": true, "rescale_acts_by_decoder_norm": true, "k": 5'
    hook = '"hook_name": "blocks.2.hook_resid_post"'
    (folder / "cfg.json").write_text(f'{{"architecture": "topk", {options}, "metadata": {{{hook}}}}}')
    return "load_sae", folder


def clt(folder, dtype):
    """What a layer writes to earlier ones is on disk and stays there."""
    folder /= "clt/width_16k_l0_big"
    folder.mkdir(parents=True)
    for index in range(4):
        layer = {"w_enc": torch.ones(512, 8192), "w_dec": torch.ones(8192, 4, 512), "b_dec": torch.ones(512)}
        layer |= {name: torch.ones(8192) for name in ("b_enc", "threshold")}
        save_file({k: v.to(dtype) for k, v in layer.items()}, folder / f"params_layer_{index}.safetensors")
    return "load_clt", folder


@pytest.mark.parametrize(
    ("write", "how"),
    [
        (gemma_scope_2, torch.float32),
        (gemma_scope_2, torch.bfloat16),
        (gemma_scope_1, np.savez),
        (gemma_scope_1, np.savez_compressed),
        (saelens, None),
        (clt, torch.bfloat16),
    ],
    ids=["float32", "bfloat16", "npz", "npz_compressed", "saelens", "clt"],
)
def test_the_peak_is_the_tensors(tmp_path, imports_only, write, how):
    nbytes, peak = child(*write(tmp_path, how))
    assert nbytes > 100e6
    assert (peak - imports_only) * 1024 < 1.1 * nbytes
