"""What ``gemlens train`` adds to each dictionary when it is done: figures, a picture, a card and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import busy, tell
from gemlens.app.load import load_model_only
from gemlens.batched import batched
from gemlens.files import write
from gemlens.records import Fidelity, QuantizationCost, Training

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.app.train_source import Source
    from gemlens.data.corpus import Text
    from gemlens.scope.sae import SAE

__all__ = ["write_results"]

_TOGETHER = 4
"""Dictionaries that share passes over the text: the activations of each site that they read or write are held, 170 MB
for 640 dimensions."""


def write_results(
    console: Console,
    out: Path,
    trained: Sequence[Training],
    source: Source,
    held_out: Sequence[Text],
    *,
    exact: Mapping[str, SAE],
    device: str,
    dead: bool,
) -> None:
    """Measure, where there is held-out text, and write ``curves.svg``, ``card.json`` and ``README.md``.

    Args:
        exact: dictionaries as they were before they were stored, by path: what storing them cost is measured too.
        dead: count dead features, and write ``max_activation.safetensors``.
    """
    from gemlens.report.card import readme, to_json
    from gemlens.report.curves import to_svg

    figures: dict[str, Fidelity] = {}
    costs: dict[str, QuantizationCost] = {}
    paths = {_path(training): training for training in trained}
    for path, training in paths.items():  # before the minutes that measuring takes
        write(to_svg(training), out / path / "curves.svg")
    over_one = [path for path, training in paths.items() if training.config["kind"] != "clt"]
    if held_out and over_one:
        figures, costs = _measured(console, out, over_one, source, held_out, exact=exact, device=device, dead=dead)
    for path, training in paths.items():
        measured, cost = figures.get(path), costs.get(path)
        write(to_json(training, measured, cost), out / path / "card.json")
        write(readme(training, measured, cost), out / path / "README.md")
        tell(console, f"{out / path}: {_summary(training, measured, cost)}")


def _measured(
    console: Console,
    out: Path,
    paths: Sequence[str],
    source: Source,
    held_out: Sequence[Text],
    *,
    exact: Mapping[str, SAE],
    device: str,
    dead: bool,
) -> tuple[dict[str, Fidelity], dict[str, QuantizationCost]]:
    """By path, and by the protocol of ``gemlens fidelity``, of the dictionaries as they are stored."""
    model, place = load_model_only(console, source.model_id, device=device, dtype="float32")
    from gemlens.data.corpus import read_documents
    from gemlens.report.card import MAX_ACTIVATION
    from gemlens.scope.load import load_sae
    from gemlens.study.activity import activities, write_activity
    from gemlens.study.fidelity import DEAD_TOKENS, fidelities
    from gemlens.study.quantization import quantization_costs
    from gemlens.study.verdict import verdict

    saes = {path: load_sae(str(out), path, device=place) for path in paths}
    figures: dict[str, Fidelity] = {}
    costs: dict[str, QuantizationCost] = {}
    for group in batched(paths, _TOGETHER):
        texts = chain.from_iterable(map(read_documents, held_out))
        stored = [saes[path] for path in group]
        with busy(console, f"Measuring {', '.join(sae.info.id for sae in stored)}"):
            if exact:
                before = [exact[path].to(place) for path in group]
                found = quantization_costs(model, before, stored, texts)
                costs |= zip(group, found, strict=True)
                figures |= {path: cost.quantized for path, cost in zip(group, found, strict=True)}
            else:
                figures |= zip(group, fidelities(model, stored, texts), strict=True)
    if dead:
        with busy(console, f"Counting dead features over {DEAD_TOKENS:,} tokens"):
            mix = source.mix(model, sorted({sae.reads for sae in saes.values()}))
            seen = activities(list(saes.values()), mix, DEAD_TOKENS)
        for path, each in zip(paths, seen, strict=True):
            write_activity(each, out / path / MAX_ACTIVATION)
            figures[path] = verdict(replace(figures[path], dead=each.dead, dead_tokens=each.tokens))
    return figures, costs


def _path(training: Training) -> str:
    return f"{training.dictionary.category}/{training.dictionary.id}"


def _summary(training: Training, measured: Fidelity | None, cost: QuantizationCost | None) -> str:
    if measured is None:
        return f"FVU {training.last('fvu'):.3f}, L0 {training.last('l0'):.1f} at the end of training"
    dead = "" if measured.dead is None else f", {measured.dead:.1%} dead"
    kept = "" if cost is None else f"; int8 keeps {cost.kept:.1%} of the active features"
    return (
        f"variance explained {measured.variance_explained:.3f}, L0 {measured.l0:.1f}, "
        f"{measured.spliced.above_clean:.3f} nats above clean{dead}{kept}"
    )
