"""``gemlens fidelity --all``: every dictionary of a release, all its transcoders at once, and a page of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import results, tell
from gemlens.app.load import load_model_only
from gemlens.app.measuring import by_groups, progress, reader, refuse_failed
from gemlens.errors import InputError, NotFoundError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.data.corpus import Text

__all__ = ["files_of", "run"]

_NAME = "quality_card"
_KINDS = ("html", "json")


def files_of(export: Sequence[Path], out_dir: Path) -> list[Path]:
    """What is written: ``html`` and ``json`` stand for files in ``out_dir``, and both are where nothing is asked for.

    Raises:
        InputError: another kind of file.
    """
    found = []
    for each in export or map(Path, _KINDS):
        if str(each) in _KINDS:
            found.append(out_dir / f"{_NAME}.{each}")
        elif each.suffix.removeprefix(".") in _KINDS:
            found.append(each)
        else:
            raise InputError(
                f"--export {each}: with --all, take html or json, for files in --out-dir, or name such a file"
            )
    return found


def run(
    console: Console,
    model_id: str,
    release: str,
    *,
    category: str | None,
    files: list[Text],
    mix: list[Text] | None,
    device: str,
    write_to: Sequence[Path],
) -> None:
    """List, measure, write, print.

    Raises:
        GemlensError: also where some dictionaries could not be measured, once the others are written and printed.
    """
    from gemlens.files import write
    from gemlens.report.quality import render, to_json
    from gemlens.report.quality_page import to_html
    from gemlens.scope.listing import listing

    found = sorted(listing(release, clts=True), key=lambda each: each.path)
    if category is not None:
        categories = {each.category for each in found}
        found = [each for each in found if each.category == category]
        if not found:
            raise NotFoundError(f"no dictionary of {release} lies in {category}; {nearest(category, categories)}")
    model, place = load_model_only(console, model_id, release, device=device, dtype="float32")
    tell(console, f"measuring {len(found)} dictionar{'y' if len(found) == 1 else 'ies'} of {release}")
    from gemlens.study.quality import quality_card

    with progress(console) as show:
        card = quality_card(
            model,
            release,
            found,
            reader(files),
            names=[file.name if isinstance(file, Path) else str(file) for file in files],
            mix=reader(mix) if mix else None,
            device=place,
            report=by_groups(found, show),
            report_set=lambda name, done, total: show(f"All at once: {name}", done, total),
        )
    for path in write_to:
        write(to_html(card) if path.suffix == ".html" else to_json(card), path)
    with results() as table:
        render(card, table)
    for path in write_to:
        tell(console, f"wrote {path}")
    refuse_failed(card.failed, len(found) - len(card.failed))
