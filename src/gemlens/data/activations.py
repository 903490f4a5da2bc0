"""A store of activations on disk: what was read at a few sites, for several passes of training.

    FOLDER/manifest.json              what made the activations, and the shards that are whole
    FOLDER/shard-00000.safetensors    a tensor [tokens, d] for each site, named as the site

Every shard but the last holds the same number of tokens. A shard is whole once the manifest names it. Sizes and
headers are checked when a store is opened, values when they are read; shards are mapped into memory, never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemlens.errors import InputError, NotFoundError, WeightsError, nearest
from gemlens.files import whole, write
from gemlens.sites import Site, parse_site

__all__ = ["MANIFEST", "ActivationStore", "StoreInfo", "open_store", "shard_name"]

MANIFEST = "manifest.json"
_FORMAT = 1
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_REMEDY = "run the same gemlens collect activations again, which makes what is missing"


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What made the activations: two stores of equal info hold the same bytes."""

    model: str
    revision: str | None
    dtype: str
    """Of the model and of what is stored."""
    tokenizer: str
    """sha256 of it."""
    sites: dict[str, int]
    """Name to width."""
    texts: list[dict[str, Any]]
    """``name``, ``bytes`` and ``sha256`` of each file; of a data set of the hub the name alone."""
    seed: int
    row_length: int
    """Tokens of a row of text, BOS included, which is not stored."""
    tokens: int
    """To be stored; the texts may end before."""
    shard_tokens: int

    @property
    def token_bytes(self) -> int:
        """On disk, a token."""
        return sum(self.sites.values()) * getattr(torch, self.dtype).itemsize

    def difference(self, other: StoreInfo) -> str | None:
        """The first field that differs, with both values; the size of the shards may."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and field.name != "shard_tokens":
                return f"{field.name} {_said(mine, theirs)} there, {_said(theirs, mine)} asked for"
        return None


@dataclass
class ActivationStore:
    """A folder of activations, finished or not."""

    folder: Path
    info: StoreInfo
    shard_tokens: list[int]
    """Tokens of each shard that is whole."""
    complete: bool = False

    @property
    def tokens(self) -> int:
        return sum(self.shard_tokens)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return tuple(map(parse_site, self.info.sites))

    def check_sites(self, sites: Sequence[Site] | None) -> tuple[Site, ...]:
        """Those asked for, or all. Raises NotFoundError for one that is not stored."""
        for site in sites or ():
            if site not in self.sites:
                raise NotFoundError(f"{self.folder} holds nothing of {site}; {nearest(str(site), self.info.sites)}")
        return tuple(sites or self.sites)

    def read(self, shard: int, start: int, stop: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Tokens ``start`` to ``stop`` of one shard, [stop - start, d] for each site, without reading the others.

        Raises:
            WeightsError: the shard is damaged, by name.
        """
        path = self.folder / shard_name(shard)
        with _Shard(path) as file:
            found = {site: file.get_slice(str(site))[start:stop] for site in sites}
        for site, tensor in found.items():
            if not tensor.isfinite().all():
                raise WeightsError(f"{path} holds values at {site} that are not finite; delete it and {_REMEDY}")
        return found

    def check(self, shard: int) -> None:
        """Hold a shard's size and header against the manifest. Raises WeightsError, by name."""
        path = self.folder / shard_name(shard)
        with _Shard(path) as file:
            there = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in there.items()}
        kind = _DTYPES[self.info.dtype]
        expected = {name: (kind, [self.shard_tokens[shard], width]) for name, width in self.info.sites.items()}
        if found != expected:
            raise WeightsError(f"{path} holds {found}, the manifest says {expected}; delete it and {_REMEDY}")

    def add(self, tensors: dict[Site, Tensor]) -> None:
        """Write the next shard, then the manifest that names it.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        # Metadata would be written in an order of its own each time.
        content = save({str(site): tensor.contiguous() for site, tensor in tensors.items()})
        with whole(self.folder / shard_name(len(self.shard_tokens))) as file:
            file.write(content)
        self.shard_tokens.append(len(next(iter(tensors.values()))))
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        shards = [{"file": shard_name(index), "tokens": tokens} for index, tokens in enumerate(self.shard_tokens)]
        content = {"format": _FORMAT, **asdict(self.info), "complete": self.complete, "shards": shards}
        write(json.dumps(content, indent=2) + "\n", self.folder / MANIFEST)


def open_store(folder: Path, *, unfinished: bool = False) -> ActivationStore:
    """Open a store, every shard's size and header checked.

    Args:
        unfinished: also one that is not complete, unchecked: to go on with it.

    Raises:
        NotFoundError: no manifest there.
        InputError: a manifest that cannot be read or is of another format, or a store that is not complete.
        WeightsError: a shard that is missing, truncated or damaged, by name.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != _FORMAT:
            raise InputError(f"{path} is of format {content['format']}, gemlens reads {_FORMAT}; update it")
        info = StoreInfo(**{field.name: content[field.name] for field in fields(StoreInfo)})
        tokens = [int(shard["tokens"]) for shard in content["shards"]]
        store = ActivationStore(folder, info, tokens, bool(content["complete"]))
        if info.dtype not in _DTYPES or not store.sites:
            raise ValueError(f"dtype {info.dtype}, sites {info.sites}")
    except FileNotFoundError as error:
        raise NotFoundError(f"{folder} holds no {MANIFEST}; make it with gemlens collect activations") from error
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); collect into a new folder"
        ) from error
    if unfinished:
        return store
    if not store.complete:
        raise InputError(f"{folder} holds {store.tokens:,} of {info.tokens:,} tokens; {_REMEDY}")
    for shard in range(len(tokens)):
        store.check(shard)
    return store


def shard_name(index: int) -> str:
    return f"shard-{index:05}.safetensors"


class _Shard:
    """An open shard; whatever is wrong with it is a WeightsError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            self._file: Any = safe_open(self.path, framework="pt")
            return self._file.__enter__()
        except FileNotFoundError as error:
            raise WeightsError(f"{self.path} is missing; {_REMEDY}") from error
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{self.path} is truncated or damaged ({reason}); delete it and {_REMEDY}") from error

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def _said(value: Any, other: Any) -> str:
    """Of lists the first entry that differs."""
    if isinstance(value, list):
        part = next((mine for mine in value if mine not in other), f"{len(value)} in this order")
        value = f"{part['name']} (sha256 {str(part['sha256'])[:12]})" if isinstance(part, dict) else part
    return ", ".join(f"{name} ({width})" for name, width in value.items()) if isinstance(value, dict) else str(value)
