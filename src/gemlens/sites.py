"""Sites: the places in a Gemma block that a dictionary reads or writes.

A site prints and parses as ``resid_post.12``. Each row of the table says which module of a Hugging Face block
carries it, on which side of that module, and what TransformerLens calls it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gemlens.errors import InputError, NotFoundError, nearest

__all__ = ["SITES", "Site", "parse_hf_hook_point", "parse_site"]


class Place(NamedTuple):
    """Where a kind of site lives inside block L."""

    module: str
    """Path of the module inside the block; empty for the block itself."""
    side: Literal["input", "output"]
    transformer_lens: str
    """TransformerLens' name, with ``{L}`` for the layer."""


# In the order in which a forward pass reaches them.
SITES: dict[str, Place] = {
    # Concatenated heads before the output projection: heads x head_dim wide, not d_model.
    "attn_out": Place("self_attn.o_proj", "input", "blocks.{L}.attn.hook_z"),
    # After the norm's (1 + weight): what the MLP is fed.
    "mlp_in": Place("pre_feedforward_layernorm", "output", "blocks.{L}.mlp.hook_in"),
    # After the post norm: what the MLP adds to the residual stream.
    "mlp_out": Place("post_feedforward_layernorm", "output", "blocks.{L}.hook_mlp_out"),
    "resid_post": Place("", "output", "blocks.{L}.hook_resid_post"),
}

# Plain digits without leading zeros, and no more than int() is willing to read.
_LAYER = r"(0|[1-9][0-9]{0,5})"
_SITE = re.compile(rf"(.*)\.{_LAYER}")
_HF_HOOK_POINT = re.compile(rf"(?:.*\.)?layers\.{_LAYER}\.(?:(.+)\.)?(input|output)")


@dataclass(frozen=True, slots=True)
class Site:
    """One place in one block; ``str(site)`` is its only spelling.

    Raises:
        NotFoundError: no such kind of site.
        InputError: a negative layer.
    """

    layer: int
    name: str

    def __post_init__(self) -> None:
        if self.name not in SITES:
            raise NotFoundError(f"no site is called {self.name!r}; {nearest(self.name, SITES)}")
        if self.layer < 0:
            raise InputError(f"site {self.name}.{self.layer}: layers count from 0")

    def __str__(self) -> str:
        return f"{self.name}.{self.layer}"

    @property
    def place(self) -> Place:
        return SITES[self.name]

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a forward pass reaches them."""
        return self.layer, list(SITES).index(self.name)

    @property
    def transformer_lens(self) -> str:
        return self.place.transformer_lens.format(L=self.layer)

    @property
    def hf_hook_point(self) -> str:
        """The name in Gemma Scope 2's ``config.json``, e.g. ``model.layers.12.output``."""
        return ".".join(filter(None, ["model.layers", str(self.layer), self.place.module, self.place.side]))


def parse_site(text: str) -> Site:
    """``"resid_post.12"`` -> ``Site(12, "resid_post")``; strict, no synonyms.

    Raises:
        InputError: not of the form ``name.layer``.
        NotFoundError: no such kind of site.
    """
    match = _SITE.fullmatch(text)
    if not match:
        raise InputError(f"{text[:100]!r} is not a site; write it as resid_post.12, with one of {', '.join(SITES)}")
    return Site(int(match[2]), match[1])


def parse_hf_hook_point(text: str) -> Site:
    """``"model.layers.12.output"`` -> ``Site(12, "resid_post")``, as Gemma Scope 2's ``config.json`` names sites.

    Raises:
        NotFoundError: the module carries no site of the table.
    """
    if match := _HF_HOOK_POINT.fullmatch(text):
        layer, module, side = match.groups()
        for name, place in SITES.items():
            if (place.module, place.side) == (module or "", side):
                return Site(int(layer), name)
    known = ", ".join(Site(0, name).hf_hook_point for name in SITES)
    raise NotFoundError(f"hook point {text[:100]!r} is not a site gemlens knows; it knows {known}, for every layer")
