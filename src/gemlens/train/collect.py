"""Fill a store with a model's activations over texts, so that training can read them several times.

A shard is a whole number of forward passes. What a killed run left goes on at the first shard that is missing or
damaged: the texts are read again up to there, which is quick, and the bytes are those of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from gemlens.data.activations import MANIFEST, ActivationStore, StoreInfo, open_store
from gemlens.data.corpus import Text, pack, text_identity
from gemlens.data.mix import mixed
from gemlens.errors import InputError, OutputError, WeightsError
from gemlens.files import check_folder
from gemlens.lm.gemma import Model, activations
from gemlens.lm.stream import TOGETHER, activation_stream
from gemlens.lm.text import encode_documents
from gemlens.sites import Site

__all__ = ["collect_activations"]

SHARD_BYTES = 128 << 20


def collect_activations(
    model: Model,
    texts: Sequence[Text],
    sites: Sequence[Site],
    folder: Path,
    *,
    tokens: int,
    row_length: int = 256,
    seed: int = 0,
    begin: Callable[[StoreInfo, int], None] = lambda _info, _bytes: None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> ActivationStore:
    """Store ``tokens`` activations at each site in ``folder``, BOS left out, or go on where a killed run stopped.

    Args:
        texts: documents, shuffled by ``seed`` and packed into rows of ``row_length`` tokens.
        tokens: rounded up to whole rows; where the texts end before, the store does.
        begin: called once with what will be stored and the bytes still to be written.
        report: called with tokens done and tokens to do.

    Raises:
        InputError: numbers out of range, text for less than a row, or a folder with activations of something else.
        MismatchError: the model lacks a layer.
        OutputError: the folder holds other files or cannot be written, or the disk has too little room.
        WeightsError: the activations are not finite.
    """
    if tokens < 1:
        raise InputError(f"tokens {tokens}: take 1 or more")
    if not 2 <= row_length <= model.context:
        raise InputError(f"row length {row_length}: take 2 to {model.context} tokens, BOS among them")
    if not sites:
        raise InputError("no site was given; name some, as resid_post.12")
    info = _describe(model, texts, sites, tokens=tokens, row_length=row_length, seed=seed)
    store = _taken_up(check_folder(folder), info)
    total = -(-tokens // (row_length - 1))
    if store.complete:
        begin(store.info, 0)
        return store
    _check_room(folder, needed := (total * (row_length - 1) - store.tokens) * info.token_bytes)
    begin(store.info, needed)
    encode = partial(encode_documents, model)
    rows = pack(mixed(texts, seed), encode, bos=model.bos, length=row_length)
    stream = activation_stream(model, islice(rows, store.tokens // (row_length - 1), total), sites)
    for shard in _shards(_told(stream, report, store.tokens, total * (row_length - 1)), store.info):
        if not store.shard_tokens:
            store.save()  # a first shard without a manifest would be a file of somebody else's
        store.add(shard)
    if not store.tokens:
        raise InputError(f"the text fills no row of {row_length} tokens; give more, or ask for shorter rows")
    store.complete = True
    store.save()
    return store


def _describe(model: Model, texts: Sequence[Text], sites: Sequence[Site], **asked: int) -> StoreInfo:
    read = activations(model, torch.tensor([[model.bos]]), sites)
    widths = {str(site): tensor.shape[-1] for site, tensor in sorted(read.items())}
    dtype = str(model.dtype).removeprefix("torch.")
    row_bytes = (asked["row_length"] - 1) * sum(widths.values()) * model.dtype.itemsize
    passes = max(1, SHARD_BYTES // (row_bytes * TOGETHER))
    return StoreInfo(
        model=model.name,
        revision=model.revision,
        dtype=dtype,
        tokenizer=hashlib.sha256(model.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        sites=widths,
        texts=[text_identity(text) for text in texts],
        shard_tokens=passes * TOGETHER * (asked["row_length"] - 1),
        **asked,
    )


def _taken_up(folder: Path, info: StoreInfo) -> ActivationStore:
    """The store that stands in ``folder`` up to its first missing or damaged shard, or a new one."""
    for left_over in folder.glob(".gemlens-*.tmp"):  # of a run that was killed while it wrote
        left_over.unlink()
    if not (folder / MANIFEST).exists():
        if other := next(folder.iterdir(), None):
            raise OutputError(f"{folder} holds other files, {other.name} among them; name a new or empty folder")
        return ActivationStore(folder, info, [])
    store = open_store(folder, unfinished=True)
    if difference := store.info.difference(info):
        raise InputError(f"{folder} holds other activations: {difference}; name another folder")
    for shard in range(len(store.shard_tokens)):
        try:
            store.check(shard)
        except WeightsError:
            store.shard_tokens, store.complete = store.shard_tokens[:shard], False
            break
    return store


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the activations need {needed / 1e6:,.1f} MB and {folder} has {free / 1e6:,.1f} MB free; ask for fewer "
            "tokens or sites, or write elsewhere"
        )


def _told(
    stream: Iterable[dict[Site, Tensor]], report: Callable[[int, int], None], done: int, total: int
) -> Iterator[dict[Site, Tensor]]:
    for chunk in stream:
        done += len(next(iter(chunk.values())))
        report(done, total)
        yield chunk


def _shards(stream: Iterable[dict[Site, Tensor]], info: StoreInfo) -> Iterator[dict[Site, Tensor]]:
    """Chunks joined to shards; only the last is shorter, since a shard is a whole number of chunks."""
    dtype = getattr(torch, info.dtype)  # inside its norms, a model computes in float32
    parts: list[dict[Site, Tensor]] = []
    held = 0
    for chunk in stream:
        parts.append({site: tensor.to("cpu", dtype) for site, tensor in chunk.items()})
        held += len(next(iter(chunk.values())))
        if held == info.shard_tokens:
            yield _joined(parts)
            parts, held = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[dict[Site, Tensor]]) -> dict[Site, Tensor]:
    return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
