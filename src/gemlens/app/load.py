"""Load what a command works with, in the order in which slips are cheapest to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from gemlens import hub
from gemlens.app.console import busy
from gemlens.app.options import check_layer
from gemlens.lm.starter import STARTER_NAME
from gemlens.paths import local_folder

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.scope.sae import SAE

__all__ = ["load", "load_model_only", "uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports and models make a million objects that stay: to look for garbage among them takes half a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@uncollected()
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
    _look_up(console, model_id, release)
    with busy(console, "Loading torch"):
        from gemlens.lm.load import load_model, pick_device
        from gemlens.scope.load import load_sae
        from gemlens.study.fit_check import check_fit

        place = pick_device(device)
    dictionaries = []
    for name in ids:
        with _busy_unless_downloading(console, release, f"Loading {name}"):
            dictionaries.append(load_sae(release, name, category=category.strip("/"), device=place))
        check_layer(layer, name, dictionaries[-1].info.layer)
    with _busy_unless_downloading(console, model_id, f"Loading {model_id}"):
        model = load_model(model_id, device=str(place), dtype=dtype)
    warnings = [warning for dictionary in dictionaries for warning in check_fit(model, dictionary)]
    return dictionaries, model, warnings


@uncollected()
def load_model_only(
    console: Console, model_id: str, release: str | None = None, *, device: str, dtype: str
) -> tuple[Model, torch.device]:
    """Model and device, for a command that needs no dictionary, or loads those of ``release`` one after another."""
    _look_up(console, model_id, release)
    with busy(console, "Loading torch"):
        from gemlens.lm.load import load_model, pick_device

        place = pick_device(device)
    with _busy_unless_downloading(console, model_id, f"Loading {model_id}"):
        return load_model(model_id, device=str(place), dtype=dtype), place


def _look_up(console: Console, model_id: str, release: str | None) -> None:
    if _on_hub(model_id) or (release is not None and _on_hub(release)):
        _quiet_client(console)
    if _on_hub(model_id):
        with busy(console, f"Looking up {model_id}"):
            hub.fetch(model_id, "config.json")


def _on_hub(source: str) -> bool:
    return source != STARTER_NAME and local_folder(source) is None


def _busy_unless_downloading(console: Console, source: str, what: str) -> AbstractContextManager[None]:
    """The client draws bars of its own, and two things that move on one terminal garble each other."""
    return nullcontext() if _on_hub(source) else busy(console, what)


def _quiet_client(console: Console) -> None:
    """No bars where nothing can move: they would be lines in a log."""
    if not console.is_terminal:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
