"""TransformerLens' names of places, as SAELens and circuit-tracer write them into their configs."""

from __future__ import annotations

import re

from gemlens.errors import NotFoundError
from gemlens.sites import SITES, Site

__all__ = ["site_of_hook"]

_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,5})\.(.+)")


def site_of_hook(name: str) -> Site:
    """``"blocks.12.hook_resid_post"`` -> ``resid_post.12``.

    Raises:
        NotFoundError: no such place in the table of sites.
    """
    places = {place.transformer_lens.removeprefix("blocks.{L}."): kind for kind, place in SITES.items()}
    # SAELens' name for what Gemma Scope 2's transcoders read; TransformerLens has the residual before the norm there.
    places["hook_mlp_in"] = "mlp_in"
    if name == "hook_embed":
        return Site(0, "embed")
    if match := _NAME.fullmatch(name):
        layer, place = int(match[1]), match[2]
        if place == "hook_resid_pre":  # what a block is given: the output of the one before
            return Site(layer - 1, "resid_post") if layer else Site(0, "embed")
        if place in places and place != "hook_embed":
            return Site(layer, places[place])
    known = ", ".join(sorted({*places, "hook_resid_pre"} - {"hook_embed"}))
    raise NotFoundError(f"hook {name[:100]!r} is not a site gemlens knows; of blocks.L. it knows {known}")
