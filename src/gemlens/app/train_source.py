"""Where ``gemlens train`` gets its batches: from a model that reads texts, or from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from gemlens.app.console import tell
from gemlens.app.load import load_model_only
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.paths import local_folder
from gemlens.train.config import FitConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import Tensor

    from gemlens.data.corpus import Text
    from gemlens.lm.gemma import Model
    from gemlens.sites import Site
    from gemlens.train.stream import BatchStream

__all__ = ["Source", "from_store", "from_texts"]

_BUFFER, _BUFFER_BYTES = 131_072, 2 << 30


@dataclass
class Source:
    stream: BatchStream
    about: dict[str, Any]
    """What is read, for the checkpoint and the card."""
    model_id: str
    model_name: str
    """As a dictionary's config says it."""
    device: torch.device
    """Where to train: beside the model, which reads faster than any disk, or as asked for."""
    mix: Callable[[Model, list[Site]], Iterable[Mapping[Site, Tensor]]]
    """Activations of what was trained on, each token once, to count dead features over; from ``Model`` or stored."""


def from_texts(
    console: Console,
    files: list[Text],
    held_out: list[Text],
    configs: Mapping[str, FitConfig],
    own: Mapping[str, FitConfig],
    buffer: int | None,
    *,
    model_id: str,
    device: str,
    dtype: str,
    row_length: int,
    passes: int,
) -> Source:
    """A live model that reads the texts ``passes`` times, each time in another order.

    Args:
        configs: of all processes: as many tokens are shuffled as if this one trained them all.
        own: those that this process trains, whose sites are read.

    Raises:
        InputError: fewer than one pass, rows longer than the model's context, or no text but the held-out.
        MismatchError: the model lacks a layer.
        What loading the model raises.
    """
    apart = {_resolved(file) for file in held_out}
    texts = [file for file in files if _resolved(file) not in apart]
    if not texts:
        raise InputError("all of --texts is held out; give more texts, or measure on another")
    if passes < 1:
        raise InputError(f"--passes {passes}: the texts have to be read at least once")
    model, _ = load_model_only(console, model_id, device=device, dtype=dtype)
    from gemlens.data.corpus import text_identity
    from gemlens.data.mix import mixed
    from gemlens.lm.gemma import module_at
    from gemlens.lm.stream import activation_stream
    from gemlens.study.fidelity import rows_of
    from gemlens.study.fit_check import site_width
    from gemlens.train.stream import ShuffledStream, harvest

    if not 2 <= row_length <= model.context:
        raise InputError(f"--row-length {row_length}: take 2 to {model.context} tokens, BOS among them")
    first, sites, bytes_at = _first(configs), _sites(own), {}
    for site in _sites(configs):
        module_at(model, site)
        bytes_at[site] = site_width(model, site) * model.dtype.itemsize
    held = buffer or max(first.batch, min(_BUFFER, _BUFFER_BYTES // sum(bytes_at.values())))
    size = held * sum(bytes_at[site] for site in sites)
    tell(console, f"shuffling {held:,} tokens at {len(sites)} sites, {size / 1e6:,.1f} MB")

    def rows() -> Iterator[NDArray[np.int64]]:
        for seed in range(first.seed, first.seed + passes):
            yield from rows_of(model, mixed(texts, seed), length=row_length)

    source = harvest(model, rows, sites)
    return Source(
        stream=ShuffledStream(source, batch=first.batch, buffer=held, seed=first.seed),
        about={
            "model": model.name,
            "revision": model.revision,
            "dtype": str(model.dtype).removeprefix("torch."),
            "row_length": row_length,
            "passes": passes,
            "texts": [text_identity(text) for text in texts],
        },
        model_id=model_id,
        model_name=_published(model.name),
        device=model.device,
        mix=lambda other, read: activation_stream(other, rows_of(other, mixed(texts, first.seed)), read),
    )


def from_store(folder: Path, configs: Mapping[str, FitConfig], buffer: int | None, *, device: str) -> Source:
    """Activations on disk, in as many passes as the tokens take.

    Raises:
        NotFoundError: no store there, or it lacks a site.
        InputError, WeightsError: what opening it raises.
    """
    from gemlens.data.activations import open_store
    from gemlens.lm.load import pick_device
    from gemlens.train.stored import StoredStream

    store, first = open_store(folder), _first(configs)
    info, sizes = store.info, {} if buffer is None else {"buffer": buffer}
    stream = StoredStream(store, batch=first.batch, epochs=None, sites=_sites(configs), seed=first.seed, **sizes)
    return Source(
        stream=stream,
        about={
            "model": info.model,
            "revision": info.revision,
            "dtype": info.dtype,
            "row_length": info.row_length,
            "stored_tokens": store.tokens,
            "texts": info.texts,
        },
        model_id=info.model,
        model_name=_published(info.model),
        device=pick_device(device),
        mix=lambda _, read: StoredStream(store, batch=min(first.batch, store.tokens), epochs=1, sites=read),
    )


def _first(configs: Mapping[str, FitConfig]) -> FitConfig:
    return next(iter(configs.values()))


def _sites(configs: Mapping[str, FitConfig]) -> list[Site]:
    return sorted({site for config in configs.values() for site in config.sites_read + config.sites_written})


def _resolved(text: Text) -> object:
    return text.resolve() if isinstance(text, Path) else text


def _published(model: str) -> str:
    """The starter is Google's base model; of a folder, a dictionary that is passed on needs the name alone."""
    if model == STARTER_NAME:
        return "google/gemma-3-270m"
    return PurePath(model).name if local_folder(model) is not None else model
