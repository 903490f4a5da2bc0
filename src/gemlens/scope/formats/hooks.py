"""Names of places as SAELens and circuit-tracer write them into their configs."""

from __future__ import annotations

import re

from gemlens.sites import Site, parse_hook_point

__all__ = ["site_of_hook"]

_RESID_PRE = re.compile(r"blocks\.(0|[1-9][0-9]{0,5})\.hook_resid_pre")


def site_of_hook(name: str) -> Site:
    """``"blocks.12.hook_resid_post"`` -> ``resid_post.12``; the input of a block is the output of the one before.

    Raises:
        NotFoundError: no such place in the table of sites.
    """
    if match := _RESID_PRE.fullmatch(name):
        layer = int(match[1])
        return Site(layer - 1, "resid_post") if layer else Site(0, "embed")
    return parse_hook_point(name)
