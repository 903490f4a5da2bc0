"""The folder of one dictionary: on this machine, or in a repository on the hub, whose files come as they are asked for.

All files of one dictionary come from one commit: that of the first file that was fetched.
"""

from __future__ import annotations

import json
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemlens import hub
from gemlens.errors import NetworkError, NotFoundError, WeightsError
from gemlens.parts import LocalParts, Parts
from gemlens.ranges import cached_file, find_parts
from gemlens.records import DictionaryInfo
from gemlens.scope.catalog import neuronpedia_id
from gemlens.sites import Site

__all__ = ["Folder", "HubFolder", "LocalFolder", "is_cached", "read_config"]

_CONFIG_BYTES = 1 << 20


class Folder(ABC):
    """Where a dictionary's files are, and what it is called.

    Args:
        release: a hub repository, a folder as given, or ``starter``.
        path: of the dictionary inside the release; empty where the release is the dictionary.
    """

    def __init__(self, release: str, path: str) -> None:
        self.release, self.path = release, path

    @abstractmethod
    def find(self, name: str) -> Path | None:
        """A file, or None if there is none of that name."""

    @abstractmethod
    def need(self, name: str) -> Path:
        """A file that must be there; whoever reads it says what is missing."""

    @abstractmethod
    def parts(self, name: str) -> Parts | None:
        """A file to be read in parts, without the rest of it, or None if there is none of that name.

        Args:
            name: may lead up, as ``../../tokens.safetensors`` does, but not out of the release.

        Raises:
            WeightsError: it does; and what ``Parts`` raise.
        """

    @property
    @abstractmethod
    def said(self) -> str:
        """All names that lead to the files, for what only names say: site, layer, model."""

    @property
    @abstractmethod
    def revision(self) -> str | None:
        """Commit of the hub repository."""

    def info(self, reads: Site, width: int, model_name: str | None) -> DictionaryInfo:
        category, _, name = self.path.rpartition("/")
        return DictionaryInfo(
            release=self.release,
            category=category,
            id=name,
            site=str(reads),
            layer=reads.layer,
            width=width,
            neuronpedia=neuronpedia_id(self.release, self.path),
            model_name=model_name,
            revision=self.revision,
            path=self.path,
        )


class LocalFolder(Folder):
    """A folder of this machine: ``root`` holds the files."""

    def __init__(self, release: str, path: str, root: Path) -> None:
        super().__init__(release, path)
        self.root = root

    def find(self, name: str) -> Path | None:
        file = self.root / name
        return file if file.is_file() else None

    def need(self, name: str) -> Path:
        return self.root / name

    def parts(self, name: str) -> Parts | None:
        # A dictionary that is named by its own folder lies at most two below its release: category and id.
        _check_inside(self.path or "category/id", name, self.root)
        file = self.find(posixpath.normpath(name))
        return LocalParts(file) if file else None

    @property
    def said(self) -> str:
        return self.root.absolute().as_posix()

    @property
    def revision(self) -> str | None:
        return hub.commit_of(self.root)


class HubFolder(Folder):
    """The folder ``inside`` of a hub repository."""

    def __init__(self, repo: str, path: str, inside: str, revision: str | None) -> None:
        super().__init__(repo, path)
        self._inside, self._asked = inside, revision
        self._commit: str | None = None

    def _in_repo(self, name: str) -> str:
        return f"{self._inside}/{name}" if self._inside else name

    def need(self, name: str) -> Path:
        file = hub.fetch(self.release, self._in_repo(name), revision=self._commit or self._asked)
        self._commit = self._commit or hub.commit_of(file)
        return file

    def find(self, name: str) -> Path | None:
        try:
            return self.need(name)
        except NotFoundError:
            return None
        except NetworkError:
            if not _known_to_be_absent(self.release, self._in_repo(name), self._commit or self._asked):
                raise
            return None

    def parts(self, name: str) -> Parts | None:
        """From the cache if it has the file, else by ranges from the hub."""
        _check_inside(self._inside, name, self.said)
        file, revision = posixpath.normpath(self._in_repo(name)), self._commit or self._asked
        if cached := cached_file(self.release, file, revision):
            self._commit = self._commit or hub.commit_of(cached)
            return LocalParts(cached)
        try:
            found = find_parts(self.release, file, revision=revision)
        except NetworkError:
            if not _known_to_be_absent(self.release, file, revision):
                raise
            return None
        self._commit = self._commit or (found.revision if found else None)
        return found

    @property
    def said(self) -> str:
        return f"{self.release}/{self.path}"

    @property
    def revision(self) -> str | None:
        return self._commit


def _check_inside(path: str, name: str, where: object) -> None:
    if posixpath.normpath(posixpath.join(path, name)).startswith(("..", "/")):
        raise WeightsError(f"{where} names a file outside of its release ({name[:80]!r}); it is not read")


def _known_to_be_absent(repo: str, filename: str, revision: str | None) -> bool:
    """Whether the hub once said that it has no such file, so that a dictionary without config.json loads offline."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, filename, revision=revision) is _CACHED_NO_EXIST


def is_cached(repo: str, filename: str, revision: str | None) -> bool:
    """Whether a file of a repository can be had without the hub."""
    return cached_file(repo, filename, revision) is not None


def read_config(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """A small text file that describes a dictionary.

    Args:
        parse: of the text; raises ValueError for what it cannot read.

    Raises:
        WeightsError: unreadable, or not a table of names and values.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_CONFIG_BYTES + 1)
        if len(text) > _CONFIG_BYTES:
            raise ValueError("it is longer than any config")
        config = parse(text.decode("utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; it says what the dictionary beside it reads") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} cannot be read ({reason}); download it again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a {'JSON object' if path.suffix == '.json' else 'table'}; download it again")
    return config
