"""Load a dictionary: Gemma Scope 2's layout, from the hub, its cache, a folder, or the starter package.

    {release}/{category}/{id}/config.json
    {release}/{category}/{id}/params.safetensors    w_enc [d_in, F]  w_dec [F, d_out]  b_enc [F]  b_dec [d_out]
                                                    threshold [F]  affine_skip_connection [d_in, d_out] (optional)

Some folders have no config.json: site and kind then follow from the path.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemlens import hub
from gemlens.errors import MissingPackageError, NetworkError, NotFoundError, WeightsError, nearest
from gemlens.paths import local_folder
from gemlens.records import DictionaryInfo
from gemlens.scope.catalog import neuronpedia_id
from gemlens.scope.rows import DenseRows
from gemlens.scope.sae import SAE
from gemlens.scope.weights import check_shapes, read_safetensors
from gemlens.sites import Site, parse_hook_point

__all__ = ["STARTER_DICTIONARY", "STARTER_RELEASE", "load_sae", "split_id", "starter_root"]

STARTER_RELEASE = "starter"
STARTER_DICTIONARY = "resid_post/layer_12_width_4k_l0_medium"
_CONFIG, _PARAMS = "config.json", "params.safetensors"
_NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_SKIP = "affine_skip_connection"
# The folder that dictionaries of a kind lie in -> where they read and write.
_CATEGORIES = {
    "resid_post": ("resid_post", "resid_post"),
    "attn_out": ("attn_out", "attn_out"),
    "mlp_out": ("mlp_out", "mlp_out"),
    "transcoder": ("mlp_in", "mlp_out"),
}


@dataclass(frozen=True)
class _Source:
    """Where a dictionary's files are."""

    params: Path
    config: Path | None
    revision: str | None


def split_id(sae_id: str, category: str | None) -> tuple[str, str]:
    """``("resid_post/layer_12_…", any)`` or ``("layer_12_…", "resid_post")`` -> category, id.

    A category inside the id wins; without either the category is empty (a folder that holds the files itself).
    """
    inside, _, name = sae_id.strip("/").rpartition("/")
    return inside or (category or ""), name


def load_sae(
    release: str,
    sae_id: str,
    *,
    category: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """Load an SAE or transcoder.

    Args:
        release: hub repository, folder, or ``starter``.
        sae_id: ``layer_12_width_16k_l0_small``, or with its category ``resid_post/layer_12_width_16k_l0_small``.
        category: for ids without one.
        dtype: of the arithmetic; files hold float32 or bfloat16.

    Raises:
        NotFoundError: no such release or id; nearest names included.
        AccessError, NetworkError: the hub does not give it out, or cannot be reached.
        WeightsError: truncated, damaged, incomplete, of shapes that contradict each other or the config.
        MissingPackageError: ``starter`` without its data package.
    """
    category, name = split_id(sae_id, category)
    path = f"{category}/{name}" if category else name
    source = _locate(release, path, revision)
    config = _read_config(source.config) if source.config else {}
    reads, writes = _sites(config, path)
    tensors = _read_params(source.params)
    width = tensors["w_enc"].shape[1]
    if config.get("width", width) != width:
        raise WeightsError(
            f"{source.config} says width {config['width']!r}, the tensors beside it have {width} features; "
            "download both again"
        )
    tensors = {key: tensor.to(device, dtype) for key, tensor in tensors.items()}
    return SAE(
        DenseRows(tensors["w_enc"].T),
        DenseRows(tensors["w_dec"]),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        skip=tensors.get(_SKIP),
        reads=reads,
        writes=writes,
        info=DictionaryInfo(
            release=release,
            category=category,
            id=name,
            site=str(reads),
            layer=reads.layer,
            width=width,
            neuronpedia=neuronpedia_id(release, path),
            model_name=_model_name(config),
            revision=source.revision,
            path=path,
        ),
    )


def starter_root() -> Path:
    """Folder of the starter's dictionaries, in the package gemlens-starter.

    Raises:
        MissingPackageError: with the command that installs it.
    """
    from importlib.resources import files

    try:
        return Path(str(files("gemlens_starter")))
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the starter's dictionaries are in a package of their own: pip install ./starter in gemlens' repository"
        ) from error


def _locate(release: str, path: str, revision: str | None) -> _Source:
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if root:
        folder = _inside(root, path)
        config = folder / _CONFIG
        return _Source(folder / _PARAMS, config if config.is_file() else None, hub.commit_of(folder))
    if not hub.is_repo_id(release):
        raise NotFoundError(
            f"{release!r} is neither a folder nor a hub repository (owner/name); "
            "try google/gemma-scope-2-270m-it, or starter, which needs no network"
        )
    params = hub.fetch(release, f"{path}/{_PARAMS}", revision=revision)
    try:
        config_file = hub.fetch(release, f"{path}/{_CONFIG}", revision=revision)
    except NotFoundError:
        config_file = None
    except NetworkError:
        if not _known_to_be_absent(release, f"{path}/{_CONFIG}", revision):
            raise
        config_file = None
    return _Source(params, config_file, hub.commit_of(params))


def _inside(root: Path, path: str) -> Path:
    """The folder of one dictionary below ``root``, or ``root`` itself where it holds the files."""
    try:
        if (root / path / _PARAMS).is_file():
            return root / path
    except OSError:  # a name longer than the file system allows is not there either
        pass
    there = sorted(str(file.parent.relative_to(root)) for file in root.glob(f"**/{_PARAMS}"))
    if there == ["."]:
        return root
    raise NotFoundError(f"{root.name} holds no dictionary {path!r}; {nearest(path, there)}")


def _known_to_be_absent(repo: str, filename: str, revision: str | None) -> bool:
    """Whether the hub once said that it has no such file, so that a dictionary without config.json loads offline."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, filename, revision=revision) is _CACHED_NO_EXIST


def _read_params(path: Path) -> dict[str, Tensor]:
    """The tensors of one dictionary, of shapes that fit together."""
    tensors = read_safetensors(path, _NAMES, frozenset({_SKIP}))
    encoder, bias = tensors["w_enc"], tensors["b_dec"]
    if encoder.ndim != 2 or bias.ndim != 1 or not encoder.numel() or not bias.numel():
        raise WeightsError(
            f"{path}: w_enc has shape {list(encoder.shape)} and b_dec {list(bias.shape)}, expected [d_in, features] "
            "and [d_out]; the file is not a Gemma Scope 2 dictionary"
        )
    (d_in, width), (d_out,) = encoder.shape, bias.shape
    shapes = {"w_dec": (width, d_out), "b_enc": (width,), "threshold": (width,), _SKIP: (d_in, d_out)}
    check_shapes(path, tensors, shapes)
    return tensors


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); download it again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a JSON object; download it again")
    if (kind := config.get("architecture", "jump_relu")) != "jump_relu":
        raise WeightsError(f"{path} describes a {kind!r} dictionary; gemlens reads jump_relu ones")
    return config


def _sites(config: dict[str, Any], path: str) -> tuple[Site, Site]:
    """From the config's hook points; from the path where the config is missing or names none."""
    if config.get("hf_hook_point_in") is not None:
        reads = parse_hook_point(str(config["hf_hook_point_in"]))
        return reads, parse_hook_point(str(config.get("hf_hook_point_out", config["hf_hook_point_in"])))
    category = path.split("/")[0].removesuffix("_all")
    layer = re.search(r"layer_([0-9]{1,6})(?![0-9])", path)
    if category not in _CATEGORIES or layer is None:
        raise NotFoundError(
            f"{path} has no config.json that says what it reads, and its path does not; "
            f"expected CATEGORY/layer_L_…, with a category of {', '.join(_CATEGORIES)}"
        )
    read, written = _CATEGORIES[category]
    return Site(int(layer[1]), read), Site(int(layer[1]), written)


def _model_name(config: dict[str, Any]) -> str | None:
    """Some configs say gemma-v3 for gemma-3."""
    name = config.get("model_name")
    return name.replace("gemma-v3-", "gemma-3-") if isinstance(name, str) else None
