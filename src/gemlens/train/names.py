"""What trained dictionaries are called: as Gemma Scope 2 calls its own, so that every loader finds them.

resid_post/layer_5_width_4k_l0_medium              attn_out and mlp_out likewise; other sites under their own name
transcoder/layer_3_width_2k_l0_small_affine        reads mlp_in, writes mlp_out; ``_affine`` with a skip
clt/width_32k_l0_small_affine                      of layers 0 to n, its width that of all layers together
clt/layers_3_4_width_4k_l0_small                   of other layers
"""

from __future__ import annotations

from collections.abc import Sequence

from gemlens.errors import InputError
from gemlens.records import DictionaryInfo, width_name
from gemlens.train.config import FitConfig

__all__ = ["info_of", "named"]

_WORDS = ((25, "small"), (80, "medium"))
"""Gemma Scope 2's: 10 to 20, 52 to 60, and from there up to 150."""


def named(configs: Sequence[FitConfig], category: str | None = None) -> dict[str, FitConfig]:
    """Configs by the path, inside a release, under which their dictionaries will lie.

    Args:
        category: folder in place of the usual one, e.g. ``transcoder_all``.

    Raises:
        InputError: two of them would have the same path.
    """
    found: dict[str, FitConfig] = {}
    for config in configs:
        path = f"{category or _category(config)}/{_name(config)}"
        if path in found:
            raise InputError(f"two dictionaries would be called {path}; train one of them into another folder")
        found[path] = config
    return found


def info_of(config: FitConfig, path: str, release: str, model_name: str | None) -> DictionaryInfo:
    reads = config.sites_read
    category, _, name = path.rpartition("/")
    width = config.width * len(reads)
    return DictionaryInfo(
        release, category, name, str(reads[0]), reads[0].layer, width, None, model_name=model_name, path=path
    )


def _category(config: FitConfig) -> str:
    return config.sites_read[0].name if config.kind == "sae" else config.kind


def _name(config: FitConfig) -> str:
    layers = [site.layer for site in config.sites_read]
    where = [f"layer_{layers[0]}"]
    if config.kind == "clt":
        # "layer_3_4" would be a crosscoder's.
        where = [] if layers == list(range(len(layers))) else [f"layers_{'_'.join(map(str, layers))}"]
    word = next((word for limit, word in _WORDS if config.l0 <= limit), "big")
    return "_".join([*where, f"width_{_width(config.width * len(layers))}", f"l0_{word}", *["affine"] * config.skip])


def _width(width: int) -> str:
    """Short only where it can be told back: loaders take ``4k`` for 4,096."""
    return width_name(width) if width >= 1024 and width & (width - 1) == 0 else str(width)
