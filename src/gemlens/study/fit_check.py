"""Does a dictionary fit a model? Refuse what cannot work, warn of what might mislead."""

from __future__ import annotations

import re
from pathlib import PurePath

from gemlens.errors import MismatchError
from gemlens.lm.gemma import Model, module_at
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.sites import Site

__all__ = ["check_fit", "site_width"]

_GENERATION = re.compile(r"gemma-?(\d)")


def check_fit(model: Model, dictionary: SAE | MultiLayer) -> list[str]:
    """Warnings about pairing ``dictionary`` with ``model``; empty when it was trained on it.

    Siblings (``pt`` and ``it``) and fine-tunes share shapes and most features, so they run, with a warning.

    Raises:
        MismatchError: the model lacks the layer, its activations have another width, or it is of another generation.
    """
    info = dictionary.info
    trained_on = info.model_name or "another model"
    for site, width in _widths(dictionary):
        module_at(model, site)  # raises for a layer that the model lacks
        if (there := site_width(model, site)) != width:
            raise MismatchError(
                f"{info.id} expects {width} numbers at {site}, {model.name} has {there}; "
                f"it was trained on {trained_on}: choose that model, or a dictionary of this one"
            )
    ours, theirs = _plain_name(model.name), _plain_name(info.model_name or "")
    # The model's own config: its name may be that of any folder.
    generations = [_GENERATION.search(text) for text in (model.config.model_type, theirs)]
    if len({match[1] for match in generations if match}) == 2:
        raise MismatchError(
            f"{info.id} was trained on {trained_on}, {model.name} is of another generation; choose a matching pair"
        )
    if theirs and ours != theirs:
        dictionary_name = "/".join(filter(None, [info.category, info.id]))
        return [f"{dictionary_name} was trained on {info.model_name}, not on {model.name}: features may mislead"]
    return []


def _widths(dictionary: SAE | MultiLayer) -> list[tuple[Site, int]]:
    """Numbers a token that the dictionary expects at each site that it reads or writes."""
    if isinstance(dictionary, SAE):
        return [(dictionary.reads, dictionary.d_in), (dictionary.writes, dictionary.d_out)]
    layers = [dictionary.layer(site) for site in dictionary.reads]
    read = [(site, layer.encoder.d) for site, layer in zip(dictionary.reads, layers, strict=True)]
    return read + [(site, layer.decoder.d) for site, layer in zip(dictionary.writes, layers, strict=True)]


def site_width(model: Model, site: Site) -> int:
    """Numbers a token at ``site``."""
    config = model.config
    return config.num_attention_heads * config.head_dim if site.name == "attn_out" else config.hidden_size


def _plain_name(name: str) -> str:
    """``google/gemma-3-270m-pt``, ``models/gemma-3-270m`` -> ``gemma-3-270m``: base models go by either name."""
    if name == STARTER_NAME:
        return "gemma-3-270m"
    return PurePath(name).name.lower().removesuffix("-pt")
