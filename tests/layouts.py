"""Dictionaries of a few kilobytes in every published layout, written with nothing of gemlens.

Each writer takes a folder and returns what it wrote, in one notation: ``w_enc [d_in, F]``, ``w_dec [F, d_out]`` or
``[F, layers, d_out]``, ``skip [d_in, d_out]``, so that a test can write out the formula.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, WIDTH, LAYERS = 6, 20, 3
GEMMA_SCOPE_1 = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
CLT, CROSSCODER = "clt/width_262k_l0_big_affine", "crosscoder/layer_7_13_17_width_262k_l0_medium"


def random_weights(*, width: int = WIDTH, d_out: int = D, skip: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """About half of the features fire on a random input; the skip is far from symmetric."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w_enc": (D, width), "w_dec": (width, d_out), "b_enc": (width,), "b_dec": (d_out,), "threshold": (width,)}
    if skip:
        shapes["skip"] = (D, d_out)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return weights | {"threshold": weights["threshold"].abs() / 2}


def random_layers(*, skip: bool = False, widths: tuple[int, ...] = (20, 14, 17)) -> list[dict[str, Tensor]]:
    """One dictionary a layer, each of which writes all layers."""
    generator = torch.Generator().manual_seed(7)
    layers = []
    for index, width in enumerate(widths):
        layer = random_weights(width=width, skip=skip, seed=index)
        layers.append(layer | {"w_dec": torch.randn(width, len(widths), D, generator=generator)})
    return layers


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_gemma_scope_1(folder: Path, weights: dict[str, Tensor], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    np.savez(folder / "params.npz", **{theirs: weights[ours].numpy() for ours, theirs in names.items()}, **more)
    return folder


def write_gemma_scope_2(folder: Path, weights: dict[str, Tensor], name: str = "params.safetensors") -> Path:
    write(folder / name, {{"skip": "affine_skip_connection"}.get(ours, ours): each for ours, each in weights.items()})
    return folder


def write_layers(folder: Path, layers: list[dict[str, Tensor]]) -> Path:
    """Gemma Scope 2's CLT or crosscoder."""
    for index, layer in enumerate(layers):
        write_gemma_scope_2(folder, layer, f"params_layer_{index}.safetensors")
    return folder


def saelens_config(architecture: str = "jumprelu", *, hook: str = "blocks.2.hook_resid_post", **changes: Any) -> dict:
    """``cfg.json`` as version 6 writes it."""
    metadata = {"hook_name": hook, "model_name": "google/gemma-3-270m", "sae_lens_version": "6.54.12"}
    config = {
        "d_in": D,
        "d_sae": WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        "architecture": architecture,
    }
    return config | changes


def write_saelens(folder: Path, weights: dict[str, Tensor], config: dict) -> Path:
    tensors = {
        "W_enc": weights["w_enc"],
        "W_dec": weights["w_dec"],
        "b_enc": weights["b_enc"],
        "b_dec": weights["b_dec"],
    }
    if "jumprelu" in str(config.get("architecture")):
        tensors["threshold"] = weights["threshold"]
    if "skip" in weights:
        tensors["W_skip"] = weights["skip"].T
    write(folder / "sae_weights.safetensors", tensors)
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_yaml(folder: Path, kind: str, reads: str = "hook_resid_mid", writes: str = "hook_mlp_out") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = f'model_name: "google/gemma-2-2b"\nmodel_kind: {kind}\nfeature_input_hook: {reads}\n'
    (folder / "config.yaml").write_text(text + f"feature_output_hook: {writes}\nscan: some/where\n", encoding="utf-8")


def write_circuit_tracer(
    folder: Path, weights: dict[str, Tensor], layer: int = 2, *, threshold: str | None = None, **hooks: str
) -> Path:
    """The transcoder of one layer; ReLU unless the threshold's name is given."""
    tensors = {"W_enc": weights["w_enc"].T, "W_dec": weights["w_dec"]}
    tensors |= {"b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    if threshold:
        tensors[threshold] = weights["threshold"]
    if "skip" in weights:
        tensors["W_skip"] = weights["skip"].T  # applied as x @ W_skip.T
    write(folder / f"layer_{layer}.safetensors", tensors)
    write_yaml(folder, "transcoder_set", **hooks)
    return folder


def write_circuit_tracer_clt(folder: Path, layers: list[dict[str, Tensor]], *, jump: bool = True, **hooks: str) -> Path:
    for index, layer in enumerate(layers):
        tensors = {"W_enc": layer["w_enc"].T, "b_enc": layer["b_enc"], "b_dec": layer["b_dec"]}
        if jump:
            tensors["threshold"] = layer["threshold"]
        if "skip" in layer:
            tensors["W_skip"] = layer["skip"]  # applied as x @ W_skip, unlike a transcoder's
        write(folder / f"W_enc_{index}.safetensors", {f"{name}_{index}": each for name, each in tensors.items()})
        write(folder / f"W_dec_{index}.safetensors", {f"W_dec_{index}": layer["w_dec"][:, index:]})
    write_yaml(folder, "cross_layer_transcoder", **hooks)
    return folder


def formula(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense activations and reconstruction of a JumpReLU dictionary over one layer."""
    pre = x @ weights["w_enc"] + weights["b_enc"]
    acts = torch.relu(pre) * (pre > weights["threshold"])
    recon = acts @ weights["w_dec"] + weights["b_dec"]
    return acts, recon + x @ weights["skip"] if "skip" in weights else recon


def some_x(n: int = 9, *, seed: int = 1, d: int = D) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
