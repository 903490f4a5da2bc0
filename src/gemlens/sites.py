"""Sites: the places in a Gemma model that a dictionary reads or writes.

A site prints and parses as ``resid_post.12``. Each row of the table says which module of a Hugging Face block
carries it, on which side of that module, and what TransformerLens calls it. Gemma 2 and 3 have the same blocks.

    embed = scaled token embeddings -> block 0
    block L:
        residual ----------------------------------------------------------(+)-> resid_mid.L
            '-> input norm -> attention -> attn_out.L -> o_proj -> post norm -'
        resid_mid -----------------------------------------------------------------(+)-> resid_post.L
            '-> mlp_in_normalized.L -> x (1 + weight) -> mlp_in.L -> MLP -> post norm -> mlp_out.L
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gemlens.errors import InputError, NotFoundError, nearest

__all__ = ["SITES", "Place", "Side", "Site", "parse_hook_point", "parse_site"]

Side = Literal["input", "output", "normalized"]


class Place(NamedTuple):
    """Where a kind of site lives inside block L."""

    module: str
    """Path of the module inside the block; empty for the block itself."""
    side: Side
    """``normalized`` is inside an RMS norm: between the division and the scale by ``1 + weight``."""
    transformer_lens: str
    """TransformerLens' name, with ``{L}`` for the layer."""


# In the order in which a forward pass reaches them.
SITES: dict[str, Place] = {
    # Scaled by sqrt(d_model). The embedding module's own output is so in Gemma 3, but in Gemma 2 only from
    # transformers 5 on: what block 0 is fed is the same everywhere.
    "embed": Place("", "input", "hook_embed"),
    # Concatenated heads before the output projection: heads x head_dim wide, not d_model.
    "attn_out": Place("self_attn.o_proj", "input", "blocks.{L}.attn.hook_z"),
    # The residual stream between attention and MLP.
    "resid_mid": Place("pre_feedforward_layernorm", "input", "blocks.{L}.hook_resid_mid"),
    # Before the norm's (1 + weight): what Gemma Scope 1's transcoders read. No module puts it out.
    "mlp_in_normalized": Place("pre_feedforward_layernorm", "normalized", "blocks.{L}.ln2.hook_normalized"),
    # After the norm's (1 + weight): what the MLP is fed.
    "mlp_in": Place("pre_feedforward_layernorm", "output", "blocks.{L}.mlp.hook_in"),
    # After the post norm: what the MLP adds to the residual stream.
    "mlp_out": Place("post_feedforward_layernorm", "output", "blocks.{L}.hook_mlp_out"),
    "resid_post": Place("", "output", "blocks.{L}.hook_resid_post"),
}
_ORDER = {name: index for index, name in enumerate(SITES)}
# The one place that belongs to no block.
_EMBED = "embed"

# Plain digits without leading zeros, and no more than int() is willing to read.
_LAYER = r"(0|[1-9][0-9]{0,5})"
_SITE = re.compile(rf"(.*)\.{_LAYER}")
# Checkpoints with a vision tower keep the language model one level down; the tower's own layers are no sites.
_HUGGING_FACE = re.compile(
    rf"(?:model\.|model\.language_model\.|language_model\.(?:model\.)?)?layers\.{_LAYER}"
    r"\.(?:(.+)\.)?(input|output|normalized)"
)
_TRANSFORMER_LENS = re.compile(rf"blocks\.{_LAYER}\.(.+)")
_BY_PLACE = {(place.module, place.side): name for name, place in SITES.items()}
_BY_HOOK = {place.transformer_lens: name for name, place in SITES.items()}
# SAELens writes hook_mlp_in for Gemma Scope 2's transcoders and means what the MLP is fed. In TransformerLens that
# name is the residual stream before the norm, which no published dictionary means by it.
_BY_HOOK["blocks.{L}.hook_mlp_in"] = "mlp_in"


@dataclass(frozen=True, slots=True)
class Site:
    """One place in one block; ``str(site)`` is its only spelling. Sites sort as a forward pass reaches them.

    Raises:
        NotFoundError: no such kind of site.
        InputError: a negative layer; a layer other than 0 for ``embed``, which is printed without one.
    """

    layer: int
    name: str

    def __post_init__(self) -> None:
        if self.name not in SITES:
            raise NotFoundError(f"no site is called {self.name!r}; {nearest(self.name, SITES)}")
        if self.layer < 0:
            raise InputError(f"site {self.name}.{self.layer}: layers count from 0")
        if self.name == _EMBED and self.layer:
            raise InputError(f"site embed of layer {self.layer}: the embedding has no layer but 0; write it as embed")

    def __str__(self) -> str:
        return _EMBED if self.name == _EMBED else f"{self.name}.{self.layer}"

    def __lt__(self, other: Site) -> bool:
        return self.depth < other.depth

    @property
    def place(self) -> Place:
        return SITES[self.name]

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a forward pass reaches them."""
        return self.layer, _ORDER[self.name]

    @property
    def transformer_lens(self) -> str:
        return self.place.transformer_lens.format(L=self.layer)

    @property
    def hf_hook_point(self) -> str:
        """The name in Gemma Scope 2's ``config.json``, e.g. ``model.layers.12.output``.

        ``mlp_in_normalized`` is no module's output: we call it ``….pre_feedforward_layernorm.normalized``.
        """
        return ".".join(filter(None, ["model.layers", str(self.layer), self.place.module, self.place.side]))


def parse_site(text: str) -> Site:
    """``"resid_post.12"`` -> ``Site(12, "resid_post")``, ``"embed"`` -> ``Site(0, "embed")``; strict, no synonyms.

    Raises:
        InputError: not of the form ``name.layer``.
        NotFoundError: no such kind of site.
    """
    if text == _EMBED:
        return Site(0, _EMBED)
    match = _SITE.fullmatch(text)
    if not match or match[1] == _EMBED:
        known = ", ".join(name for name in SITES if name != _EMBED)
        raise InputError(f"{text[:100]!r} is not a site; write it as resid_post.12, with one of {known}; or as embed")
    return Site(int(match[2]), match[1])


def parse_hook_point(text: str) -> Site:
    """Other libraries' names: ``"model.layers.12.output"`` or ``"blocks.12.hook_resid_post"`` -> ``resid_post.12``.

    Hugging Face's modules with a side, as Gemma Scope 2's ``config.json`` has them; TransformerLens' hooks, as SAELens
    and circuit-tracer have them.

    Raises:
        NotFoundError: a place that carries no site of the table.
    """
    layer, name = "0", _EMBED if text == SITES[_EMBED].transformer_lens else None
    if match := _HUGGING_FACE.fullmatch(text):
        layer, name = match[1], _BY_PLACE.get((match[2] or "", match[3]))
    elif match := _TRANSFORMER_LENS.fullmatch(text):
        layer, name = match[1], _BY_HOOK.get("blocks.{L}." + match[2])
    # The input of a later block is the output of the one before: one place, one name.
    if name is None or (name == _EMBED and layer != "0"):
        known = ", ".join(Site(0, name).hf_hook_point for name in SITES)
        raise NotFoundError(
            f"hook point {text[:100]!r} is not a site gemlens knows; it knows {known}, for every layer, "
            "and TransformerLens' names of these"
        )
    return Site(int(layer), name)
