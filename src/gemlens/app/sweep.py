"""``gemlens fidelity --sweep``: all dictionaries of a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import results, tell
from gemlens.app.load import load_model_only
from gemlens.app.measuring import by_groups, progress, reader, refuse_failed
from gemlens.errors import InputError
from gemlens.sites import Site, parse_site

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.corpus import Text

__all__ = ["check_place", "run"]


def check_place(site: str | None, layer: int | None) -> tuple[str, int | None]:
    """``resid_post`` and ``resid_post.12`` -> kind of site, layer.

    Raises:
        InputError, NotFoundError: no such site, or two layers.
    """
    if site is None:
        return "resid_post", layer
    if "." not in site:
        return Site(0, site).name, layer
    place = parse_site(site)
    if layer not in (None, place.layer):
        raise InputError(f"--site {site} and --layer {layer} contradict each other; leave --layer out")
    return place.name, place.layer


def run(
    console: Console,
    model_id: str,
    release: str,
    *,
    site: str,
    layer: int | None,
    category: str | None,
    files: list[Text],
    mix: list[Text] | None,
    device: str,
    export: Path | None,
    plot: Path | None,
) -> None:
    """List, measure, write, print.

    Raises:
        GemlensError: also where some dictionaries could not be measured, once the others are written and printed.
    """
    from gemlens.files import write
    from gemlens.report.sweep import render, to_json
    from gemlens.scope.listing import at_site, listing

    found = at_site(listing(release), site, layer=layer, category=category)
    model, place = load_model_only(console, model_id, release, device=device, dtype="float32")
    tell(console, f"measuring {len(found)} dictionar{'y' if len(found) == 1 else 'ies'} of {release}")
    from gemlens.study.sweep import sweep

    with progress(console) as show:
        measured = sweep(
            model,
            release,
            found,
            reader(files),
            mix=reader(mix) if mix else None,
            device=place,
            report=by_groups(found, show),
        )
    if export is not None:
        write(to_json(measured), export)
    if plot is not None:
        from gemlens.report.pareto import to_svg

        write(to_svg(measured), plot)
    with results() as table:
        render(measured, table)
    for path in filter(None, (export, plot)):
        tell(console, f"wrote {path}")
    refuse_failed(measured.failed, len(measured.points))
