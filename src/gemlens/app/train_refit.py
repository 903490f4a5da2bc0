"""``gemlens train --refit``: trained dictionaries get the decoders that least squares finds for their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemlens.app.console import busy
from gemlens.app.load import load_model_only
from gemlens.records import Training
from gemlens.train.config import FitConfig

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from gemlens.app.train_source import Source
    from gemlens.scope.sae import SAE

__all__ = ["write_refitted"]


def write_refitted(
    console: Console,
    out: Path,
    trained: Sequence[Training],
    dictionaries: Mapping[str, SAE],
    source: Source,
    tokens: int,
    *,
    device: str,
    save_dtype: torch.dtype,
) -> tuple[list[Training], dict[str, SAE]]:
    """Refit on what was trained on, and write over what training wrote; both are returned anew.

    Args:
        dictionaries: as training ended with them, float32, by path inside ``out``; of each of ``trained``.
    """
    if not trained:
        return [], {}
    model, place = load_model_only(console, source.model_id, device=device, dtype="quick")
    from gemlens.train.outputs import write_dictionary
    from gemlens.train.refit import refit

    here = [dictionary.to(place) for dictionary in dictionaries.values()]
    with busy(console, f"Refitting decoders on {tokens:,} tokens"):
        mix = source.mix(model, sorted({site for each in here for site in (each.reads, each.writes)}))
        found = dict(zip(dictionaries, refit(here, mix, tokens), strict=True))
    written = [
        write_dictionary(
            out / path,
            dictionary,
            FitConfig(**training.config),
            source=training.source | {"refit_tokens": tokens},
            seconds=training.seconds,
            curves=training.curves,
            dtype=save_dtype,
        )
        for training, (path, dictionary) in zip(trained, found.items(), strict=True)
    ]
    return written, found
