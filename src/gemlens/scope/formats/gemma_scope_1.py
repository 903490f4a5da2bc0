"""Gemma Scope 1: SAEs and transcoders of Gemma 2, one npz file each and no config.

    params.npz    W_enc [d_in, F]  W_dec [F, d_out]  b_enc [F]  b_dec [d_out]  threshold [F]
                  scaling_factor (some older ones)

The repository's name says model and site, the path the layer: google/gemma-scope-2b-pt-res has
layer_20/width_16k/average_l0_71. A copy on this machine is read wherever a folder above it has the repository's name.

Embedding SAEs (embedding/width_4k/average_l0_6) were trained on embeddings e as the table has them. The model, and so
the site ``embed``, has x = sqrt(d) e. Fed with x, the dictionary is

    pre   = x @ (W_enc / sqrt(d)) + b_enc
    recon = acts @ (W_dec sqrt(d)) + b_dec sqrt(d)
"""

from __future__ import annotations

import re

import torch

from gemlens.errors import NotFoundError, WeightsError
from gemlens.scope.folder import Folder
from gemlens.scope.formats.layout import Layout, Target, read
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.weights import TensorFile, open_npz
from gemlens.sites import Site

__all__ = ["read_sae"]

_LAYOUT = Layout(
    "a Gemma Scope 1",
    {"encoder": "W_enc", "decoder": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"},
    transposed=frozenset({"encoder"}),
)
_REPO = re.compile(r"gemma-scope-([0-9]+b)-(pt|it)-(res|att|mlp|transcoders)(?![a-z])")
# What a repository's name ends in -> where its dictionaries read and write.
_KINDS = {
    "res": ("resid_post", "resid_post"),
    "att": ("attn_out", "attn_out"),
    "mlp": ("mlp_out", "mlp_out"),
    # Before the norm's (1 + weight), unlike Gemma Scope 2's.
    "transcoders": ("mlp_in_normalized", "mlp_out"),
}
_LAYER = re.compile(r"(?:^|/)layer_([0-9]{1,6})/")
_EMBEDDING = re.compile(r"(?:^|/)embedding/")


def read_sae(folder: Folder, to: Target) -> SAE:
    """The SAE or transcoder of a folder."""
    file = open_npz(folder.need("params.npz"))
    reads, writes, model_name = _named(folder)
    _check_scaling(file)
    tensors = read(file, _LAYOUT, to)
    if reads.name == "embed":
        scale = len(tensors["b_dec"]) ** 0.5
        tensors["encoder"].div_(scale)
        tensors["decoder"].mul_(scale)
        tensors["b_dec"].mul_(scale)
    return SAE(
        DenseRows(tensors["encoder"]),
        DenseRows(tensors["decoder"]),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        reads=reads,
        writes=writes,
        info=folder.info(reads, len(tensors["b_enc"]), model_name),
    )


def _named(folder: Folder) -> tuple[Site, Site, str]:
    """Sites and model, from the names of repository and folders: the last that say something."""
    repos = _REPO.findall(folder.said)
    if not repos:
        raise NotFoundError(
            f"{folder.path or folder.release} is a Gemma Scope 1 file, and no folder above it says what it reads; put "
            "it below a folder named like its repository, e.g. gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
        )
    size, kind, site = repos[-1]
    model = f"google/gemma-2-{size}" + ("-it" if kind == "it" else "")
    inside = folder.said[folder.said.rindex(f"gemma-scope-{size}-{kind}-{site}") :] + "/"
    if site == "res" and _EMBEDDING.search(inside):
        embed = Site(0, "embed")
        return embed, embed, model
    layers = _LAYER.findall(inside)
    if not layers:
        raise NotFoundError(
            f"{folder.path or folder.release} does not say of which layer it is; expected "
            "layer_L/width_W/average_l0_N, as its repository has it"
        )
    read, written = _KINDS[site]
    return Site(int(layers[-1]), read), Site(int(layers[-1]), written), model


def _check_scaling(file: TensorFile) -> None:
    """Some older files have a factor for each feature, all 1; nobody has published what another one would mean."""
    if "scaling_factor" in file.tensors and (file.read("scaling_factor", torch.float32) != 1).any():
        raise WeightsError(
            f"{file.path} has a scaling_factor other than 1, which gemlens does not know how to apply; "
            "use the file that the hub has now"
        )
