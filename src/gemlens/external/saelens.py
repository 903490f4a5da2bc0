"""Dictionaries to and from SAELens, values equal.

    to_saelens(sae)         JumpReLU and TopK SAEs, JumpReLU transcoders with and without skip
    from_saelens(theirs)    what ``scope.formats.saelens`` reads from a folder, from memory

Both sides get tensors of their own. SAELens' options that gemlens lacks (``apply_b_dec_to_input``,
``rescale_acts_by_decoder_norm``) are folded into the weights on the way in.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemlens.errors import InputError, MissingPackageError
from gemlens.records import DictionaryInfo
from gemlens.scope.activation import TopK
from gemlens.scope.formats.layout import Layout
from gemlens.scope.formats.saelens import build
from gemlens.scope.sae import SAE
from gemlens.sites import Site

if TYPE_CHECKING:
    import sae_lens

__all__ = ["from_saelens", "to_saelens"]


def to_saelens(sae: SAE) -> sae_lens.SAE[Any]:
    """Return the same dictionary as ``sae_lens.SAE``, on the same device and in the same dtype.

    Raises:
        MissingPackageError: SAELens is not installed.
        InputError: a TopK transcoder, which SAELens has no class for.
    """
    saes = _saelens()
    transcodes = sae.is_transcoder or sae.skip is not None
    settings: dict[str, Any] = {"d_in": sae.d_in, "d_sae": sae.width, "apply_b_dec_to_input": False}
    settings |= {"dtype": str(sae.b_enc.dtype).removeprefix("torch."), "device": str(sae.b_enc.device)}
    if transcodes:
        settings["d_out"] = sae.d_out
    if isinstance(sae.activation, TopK):
        if transcodes:
            raise InputError(f"{sae.info.id} is a TopK transcoder; SAELens has only JumpReLU ones")
        name, settings["k"] = "TopKSAE", sae.activation.k
    else:
        skips = "Skip" if sae.skip is not None else ""
        name = f"JumpReLU{skips}Transcoder" if transcodes else "JumpReLUSAE"
    config_class, theirs_class = _classes(saes, name)
    config = config_class(**settings)
    _describe(config.metadata, sae)
    theirs = theirs_class(config)
    theirs.load_state_dict(_tensors(sae))
    return theirs


def from_saelens(theirs: sae_lens.SAE[Any], *, reads: Site | None = None, writes: Site | None = None) -> SAE:
    """Return the same dictionary as ``gemlens.SAE``.

    Args:
        reads: site, where the metadata does not say (``hook_name``) or says it wrongly; as for ``writes``.

    Raises:
        MissingPackageError: SAELens is not installed.
        NotFoundError: nothing says what it reads.
        WeightsError: an architecture or an option that gemlens cannot apply.
    """
    _saelens()
    config = theirs.cfg.to_dict()
    about = dict(config["metadata"])
    for suffix, site in (("", reads), ("_out", writes)):
        if site is not None:
            about[f"hf_hook_name{suffix}"] = site.hf_hook_point
    config["metadata"] = about

    def tensors_of(layout: Layout) -> dict[str, Tensor]:
        found = {ours: getattr(theirs, name).detach().clone() for ours, name in layout.names.items()}
        return {ours: tensor.T if ours in layout.transposed else tensor for ours, tensor in found.items()}

    def info(site: Site, width: int, model_name: str | None) -> DictionaryInfo:
        named = {key: str(about.get(f"gemlens_{key}") or "") for key in ("category", "id")}
        return DictionaryInfo(
            release=str(about.get("gemlens_release") or "saelens"),
            category=named["category"],
            id=named["id"] or f"{site}_{width}",
            site=str(site),
            layer=site.layer,
            width=width,
            neuronpedia=about.get("neuronpedia_id"),
            model_name=model_name,
            revision=about.get("gemlens_revision"),
            path=about.get("gemlens_path"),
        )

    return build(config, "the SAE's config", tensors_of, info)


def _saelens() -> ModuleType:
    try:
        import sae_lens
    except ModuleNotFoundError as error:
        if error.name != "sae_lens":  # installed, but not whole: its own message says more
            raise
        raise MissingPackageError("SAELens is not installed: pip install sae-lens") from error
    return sae_lens


def _classes(saes: ModuleType, name: str) -> tuple[Any, Any]:
    """Config and module; transcoders with skips are not at SAELens' top level."""
    from importlib import import_module

    home = import_module("sae_lens.saes.transcoder") if name.endswith("Transcoder") else saes
    return getattr(home, f"{name}Config"), getattr(home, name)


def _describe(metadata: Any, sae: SAE) -> None:
    """What SAELens users look for, and our own names under ``gemlens_``."""
    info = sae.info
    metadata.model_name = info.model_name
    metadata.neuronpedia_id = info.neuronpedia
    for suffix, site in (("", sae.reads), *((("_out", sae.writes),) if sae.is_transcoder else ())):
        metadata[f"hook_name{suffix}"] = site.transformer_lens
        metadata[f"hf_hook_name{suffix}"] = site.hf_hook_point
    for key in ("release", "category", "id", "revision", "path"):
        metadata[f"gemlens_{key}"] = getattr(info, key)


def _tensors(sae: SAE) -> dict[str, Tensor]:
    tensors = {
        "W_enc": torch.cat([block for _, block in sae.encoder.blocks()]).T,
        "W_dec": torch.cat([block for _, block in sae.decoder.blocks()]),
        "b_enc": sae.b_enc,
        "b_dec": sae.b_dec,
    }
    if not isinstance(sae.activation, TopK):
        tensors["threshold"] = sae.threshold
    if sae.skip is not None:
        tensors["W_skip"] = sae.skip.T
    return tensors
