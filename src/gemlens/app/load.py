"""Load what a command works with, in the order in which slips are cheapest to find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemlens import hub
from gemlens.app.console import busy
from gemlens.app.options import check_layer
from gemlens.lm.starter import STARTER_NAME

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.scope.sae import SAE

__all__ = ["load"]


def load(
    console: Console,
    model_id: str,
    release: str,
    category: str,
    ids: list[str],
    *,
    layer: int | None = None,
    device: str,
    dtype: str,
) -> tuple[list[SAE], Model, list[str]]:
    """Dictionaries, model, and warnings about pairing them.

    1. The model's config, a few hundred bytes: a licence that was not accepted shows before torch is imported.
    2. The dictionaries: a slip in their names shows before gigabytes of model are fetched.
    3. The model.
    """
    if model_id != STARTER_NAME and not Path(model_id).expanduser().is_dir():
        with busy(console, f"Looking up {model_id}"):
            hub.fetch(model_id, "config.json")
    with busy(console, "Loading torch"):
        from gemlens.lm.load import load_model, pick_device
        from gemlens.scope.load import load_sae
        from gemlens.study.fit_check import check_fit

        place = pick_device(device)
    dictionaries = []
    for name in ids:
        with busy(console, f"Loading {name}"):
            dictionaries.append(load_sae(release, name, category=category.strip("/"), device=place))
        check_layer(layer, name, dictionaries[-1].info.layer)
    with busy(console, f"Loading {model_id}"):
        model = load_model(model_id, device=str(place), dtype=dtype)
    warnings = [warning for dictionary in dictionaries for warning in check_fit(model, dictionary)]
    return dictionaries, model, warnings
