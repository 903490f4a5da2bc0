"""One dictionary for every layer: of all that a release holds, the series that covers most layers.

sites    resid_post unless named; several give several series
width    the one that most layers have; of equals 16k, else the narrowest
L0       for each layer the nearest to a number (small, medium and big stand for 20, 60 and 150), or that word
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gemlens.errors import InputError, NotFoundError, nearest
from gemlens.scope.listing import Listed
from gemlens.sites import SITES, parse_site

__all__ = ["DEFAULT_L0", "parse_layers", "series"]

DEFAULT_L0 = 100.0
_USUAL_WIDTH = 16384
_WORDS = ("small", "medium", "big")


def parse_layers(text: str) -> tuple[int, ...] | None:
    """``all`` -> None; ``0-5,12`` -> those layers.

    Raises:
        InputError: neither.
    """
    if text.strip().lower() == "all":
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 4 or len(last) > 4:
            raise InputError(f"--layers {text[:100]}: write all, or numbers and ranges, as 0-5,12")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise InputError(f"--layers {text[:100]}: the range is empty; write the lower layer first")
    return tuple(sorted(found))


def series(
    found: Sequence[Listed],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    width: int | None = None,
    l0: float | str = DEFAULT_L0,
) -> list[Listed]:
    """Choose from a listing, in the order in which a forward pass reaches the sites.

    Args:
        sites: kinds of sites (``resid_post``), or single ones (``resid_post.12``).
        layers: None for all that there are.
        width: in features.

    Raises:
        NotFoundError: the listing has none of such a site, layer, width or L0; says what there is.
        InputError: an L0 that is neither a number nor a word of Gemma Scope 2.
    """
    kept = [each for each in found if each.site is not None and each.layer is not None and not each.is_clt]
    chosen: dict[tuple[int, int], Listed] = {}
    order = list(SITES)
    for site in dict.fromkeys(sites):
        name, only = site, layers
        if "." in site:
            place = parse_site(site)
            name, only = place.name, (place.layer,)
        for each in _of_site(kept, name, only, width, l0):
            assert each.layer is not None
            chosen[each.layer, order.index(name)] = each
    return [chosen[key] for key in sorted(chosen)]


def _of_site(
    found: Sequence[Listed], site: str, layers: Sequence[int] | None, width: int | None, l0: float | str
) -> Iterable[Listed]:
    there = {each.site for each in found if each.site}
    of_site = _some([each for each in found if each.site == site], f"that reads {site}", there, site)
    if width is not None:
        widths = {each.width for each in of_site if each.width}
        of_site = _some([each for each in of_site if each.width == width], f"of {site} with {width} features", widths)
    if isinstance(l0, str):
        if l0 not in _WORDS:
            raise InputError(f"L0 {l0[:50]!r} is neither a number nor one of {', '.join(_WORDS)}")
        of_site = _some(
            [each for each in of_site if each.l0 == l0],
            f"of {site} with L0 {l0}",
            {each.l0 for each in of_site if each.l0},
        )
    if layers is not None:
        there_layers = {each.layer for each in of_site}
        for layer in layers:
            _some([each for each in of_site if each.layer == layer], f"of {site} at layer {layer}", there_layers)
        of_site = [each for each in of_site if each.layer in layers]
    groups: dict[tuple[str, int | None], list[Listed]] = {}
    for each in of_site:
        groups.setdefault((_folder(each), each.width), []).append(each)
    of_group = max(groups.values(), key=_covers)
    by_layer: dict[int | None, list[Listed]] = {}
    for each in of_group:
        by_layer.setdefault(each.layer, []).append(each)
    nearest_one = _nearness(l0)
    return [min(same, key=nearest_one) for same in by_layer.values()]


def _covers(group: Sequence[Listed]) -> tuple[int, bool, float, str]:
    """More layers first, then the usual width, then the narrowest."""
    first = group[0]
    layers = len({each.layer for each in group})
    return layers, first.width == _USUAL_WIDTH, -(first.width or float("inf")), _folder(first)


def _nearness(l0: float | str) -> Callable[[Listed], tuple[float, int, str]]:
    """Of one layer and width: the nearest L0, then the plainest name (no skip, first seed)."""
    wanted = 0.0 if isinstance(l0, str) else l0

    def key(each: Listed) -> tuple[float, int, str]:
        far = 0.0 if isinstance(l0, str) else abs(each.l0_order - wanted)
        return far, len(each.path), each.path

    return key


def _folder(each: Listed) -> str:
    """``resid_post_all`` of Gemma Scope 2; nothing in Gemma Scope 1, whose folders are layers."""
    first = each.path.split("/")[0]
    return "" if first.startswith("layer_") else first


def _some(found: list[Listed], what: str, there: Iterable[object], name: str = "") -> list[Listed]:
    if not found:
        known = sorted(there, key=lambda each: (isinstance(each, str), each))
        near = nearest(name, map(str, known)) if name else f"there is {', '.join(map(str, known[:30])) or 'none'}"
        raise NotFoundError(f"the release has no dictionary {what}; {near}")
    return found
