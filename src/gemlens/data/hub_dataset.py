"""Text of a data set of the Hugging Face hub, through the optional package ``datasets``, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gemlens.errors import InputError, MissingPackageError, NotFoundError

__all__ = ["PREFIX", "HubDataset"]

PREFIX = "hf:"
_FORM = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^:@]*))?(?::(?P<split>[^:@]+))?(?:@(?P<revision>[^:@]+))?")


@dataclass(frozen=True)
class HubDataset:
    """``hf:owner/name``, ``hf:owner/name:config``, ``hf:owner/name:config:split``, each with ``@revision`` if wanted.

    A folder of files that ``datasets`` reads may stand for ``owner/name``.
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; only a commit is sure to stay the same text."""

    @classmethod
    def parse(cls, text: str) -> HubDataset:
        """Raises InputError for another form."""
        match = _FORM.fullmatch(text)
        if not match:
            raise InputError(f"{text[:100]!r} names no data set; write it as hf:owner/name or hf:owner/name:config")
        return cls(**{key: value for key, value in match.groupdict().items() if value})

    def __str__(self) -> str:
        parts = [self.config or "", self.split] if self.split != "train" else filter(None, [self.config])
        return ":".join([f"{PREFIX}{self.name}", *parts]) + (f"@{self.revision}" if self.revision else "")

    def rows(self, field: str) -> Iterator[tuple[Any, str]]:
        """What stands in the column ``field``, row by row, and where that is, for messages.

        Raises:
            MissingPackageError: without ``datasets``.
            NotFoundError: no such data set, configuration, split or revision, or the hub cannot be reached.
            InputError: no such column.
        """
        for number, row in enumerate(self._open(), 1):
            if field not in row:
                raise InputError(f"{self} has no column {field!r}; its columns are {', '.join(map(str, row))}")
            yield row[field], f"{self}, row {number}"

    def records(self) -> Iterator[dict[str, Any]]:
        """Whole rows, all columns; raises as ``rows`` does."""
        yield from map(dict, self._open())

    def _open(self) -> Iterable[Any]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingPackageError(f"{self} needs the package datasets: pip install 'gemlens[datasets]'") from error
        try:
            found = load_dataset(self.name, self.config, split=self.split, revision=self.revision, streaming=True)
        except Exception as error:  # of its own, of the hub's client, of fsspec, by version
            reason = " ".join(str(error).split())[:300]
            raise NotFoundError(
                f"{self} cannot be opened ({reason}); name it as hf:owner/name:config:split, or download it and give "
                "its .parquet files"
            ) from error
        return found
