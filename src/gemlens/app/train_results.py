"""What ``gemlens train`` adds to each dictionary when it is done: figures, a picture, a card and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import busy, tell
from gemlens.app.load import load_model_only
from gemlens.files import write
from gemlens.records import Fidelity, Training

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.app.train_source import Source
    from gemlens.data.corpus import Text

__all__ = ["write_results"]


def write_results(
    console: Console,
    out: Path,
    trained: Sequence[Training],
    source: Source,
    held_out: Sequence[Text],
    *,
    device: str,
    dead: bool,
) -> None:
    """Measure, where there is held-out text, and write ``curves.svg``, ``card.json`` and ``README.md``."""
    from gemlens.report.card import readme, to_json
    from gemlens.report.curves import to_svg

    figures: dict[str, Fidelity] = {}
    paths = {_path(training): training for training in trained}
    for path, training in paths.items():  # before the minutes that measuring takes
        write(to_svg(training), out / path / "curves.svg")
    if held_out:
        over_one = [path for path, training in paths.items() if training.config["kind"] != "clt"]
        figures = _measured(console, out, over_one, source, held_out, device=device, dead=dead) if over_one else {}
    for path, training in paths.items():
        measured = figures.get(path)
        write(to_json(training, measured), out / path / "card.json")
        write(readme(training, measured), out / path / "README.md")
        tell(console, f"{out / path}: {_summary(training, measured)}")


def _measured(
    console: Console,
    out: Path,
    paths: Sequence[str],
    source: Source,
    held_out: Sequence[Text],
    *,
    device: str,
    dead: bool,
) -> dict[str, Fidelity]:
    """By the protocol of ``gemlens fidelity``, of the dictionaries as they are stored."""
    model, place = load_model_only(console, source.model_id, device=device, dtype="float32")
    from gemlens.data.corpus import read_documents
    from gemlens.scope.load import load_sae
    from gemlens.study.activity import activities
    from gemlens.study.fidelity import DEAD_TOKENS, fidelity
    from gemlens.study.verdict import verdict

    saes = [load_sae(str(out), path, device=place) for path in paths]
    figures = []
    for sae in saes:
        with busy(console, f"Measuring {sae.info.id}"):
            figures.append(fidelity(model, sae, chain.from_iterable(map(read_documents, held_out))))
    if dead:
        with busy(console, f"Counting dead features over {DEAD_TOKENS:,} tokens"):
            seen = activities(saes, source.mix(model, sorted({sae.reads for sae in saes})), DEAD_TOKENS)
        figures = [
            verdict(replace(each, dead=found.dead, dead_tokens=found.tokens))
            for each, found in zip(figures, seen, strict=True)
        ]
    return dict(zip(paths, figures, strict=True))


def _path(training: Training) -> str:
    return f"{training.dictionary.category}/{training.dictionary.id}"


def _summary(training: Training, measured: Fidelity | None) -> str:
    if measured is None:
        return f"FVU {training.last('fvu'):.3f}, L0 {training.last('l0'):.1f} at the end of training"
    dead = "" if measured.dead is None else f", {measured.dead:.1%} dead"
    return (
        f"variance explained {measured.variance_explained:.3f}, L0 {measured.l0:.1f}, "
        f"{measured.spliced.above_clean:.3f} nats above clean{dead}"
    )
