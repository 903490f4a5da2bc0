"""``gemlens fidelity --sweep``: all dictionaries of a site, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemlens.app.console import results, tell
from gemlens.app.load import load_model_only
from gemlens.errors import GemlensError, InputError
from gemlens.sites import Site, parse_site

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.corpus import Text
    from gemlens.records import Sweep
    from gemlens.scope.listing import Listed

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
    from gemlens.data.corpus import read_documents
    from gemlens.files import write
    from gemlens.report.sweep import render, to_json
    from gemlens.scope.listing import at_site, listing

    found = at_site(listing(release), site, layer=layer, category=category)
    model, place = load_model_only(console, model_id, release, device=device, dtype="float32")
    tell(console, f"measuring {len(found)} dictionar{'y' if len(found) == 1 else 'ies'} of {release}")
    from gemlens.study.sweep import sweep

    def read(paths: list[Text]) -> Iterable[str]:
        return chain.from_iterable(map(read_documents, paths))

    with _progress(console, found) as report:
        measured = sweep(
            model,
            release,
            found,
            lambda: read(files),
            mix=None if mix is None else lambda: read(mix),
            device=place,
            **report,
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
    _refuse_failed(measured)


def _refuse_failed(measured: Sweep) -> None:
    if measured.failed:
        path, reason = measured.failed[0]
        known = len(measured.points) + len(measured.failed)
        raise GemlensError(
            f"{len(measured.failed)} of {known} dictionaries could not be measured; the first is {path}: {reason}"
        )


@contextmanager
def _progress(console: Console, found: list[Listed]) -> Iterator[dict[str, Any]]:
    """What ``sweep`` reports, as one bar over all dictionaries; nothing where nothing can move."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield {}
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Loading", total=None)

        def report(which: Listed, done: int, total: int) -> None:
            before = found.index(which)
            said = f"{before + 1} of {len(found)}: {which.path}"
            bar.update(task, description=said, completed=before * total + done, total=len(found) * total)

        yield {"report": report}
