"""From token ids to text by the vocabulary alone: no model, no torch, and no tokenizer built.

``tokenizer.json`` is read for its table of entries, which takes half a second where building a tokenizer takes two.
Gemma writes a space as ``▁`` and what the vocabulary lacks as bytes, ``<0xF0>``; nothing else is between an entry and
its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemlens import hub
from gemlens.errors import GemlensError, MismatchError, MissingPackageError, NotFoundError, WeightsError
from gemlens.lm.starter import STARTER_NAME, starter_folder
from gemlens.paths import local_folder
from gemlens.ranges import cached_file

__all__ = ["Vocabulary", "load_vocabulary", "read_vocabulary", "spell"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_FILE = "tokenizer.json"
_SPACE = "▁"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The entries of a tokenizer by their ids."""

    name: str
    """The model it is of."""
    pieces: tuple[str, ...] = field(repr=False)
    """Id -> entry, e.g. ``▁Hello``; empty for an id that has none."""
    special: frozenset[int] = field(repr=False)
    """Control tokens: BOS, padding, ``<start_of_turn>`` ..."""

    def check(self, ids: Sequence[int]) -> None:
        """Raise MismatchError for an id that the vocabulary does not have: the text is another model's."""
        if ids and max(ids) >= len(self.pieces):
            raise MismatchError(
                f"the evidence holds token {max(ids)}, the vocabulary of {self.name} has {len(self.pieces)}; it "
                "was collected with another model: name that one with --model-id"
            )

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        self.check(ids)
        entries = [self.pieces[token] for token in ids]
        return spell(entries, lambda index: entries[index].replace(_SPACE, " "))

    def name_of(self, token: int) -> str:
        """A token that stands alone: its text, or the entry of a byte."""
        self.check([token])
        return self.pieces[token].replace(_SPACE, " ") or f"#{token}"


def load_vocabulary(model_id: str, *, fetch: bool = True) -> Vocabulary:
    """The vocabulary of a model: ``starter``, a folder, or a hub repository, of which only its tokenizer is fetched.

    The hub's cache comes first. All of Gemma 3 has one vocabulary, so that the starter's stands in for it where that
    is on this machine: Google's own asks for a licence and a token.

    Args:
        fetch: from the hub, if need be.

    Raises:
        NotFoundError, AccessError, NetworkError, WeightsError, MissingPackageError: it cannot be had.
    """
    if model_id == STARTER_NAME:
        return read_vocabulary(starter_folder() / _FILE, model_id)
    if folder := local_folder(model_id):
        return read_vocabulary(folder / _FILE, model_id)
    if cached := cached_file(model_id, _FILE, None):
        return read_vocabulary(cached, model_id)
    if "gemma-3-" in model_id:
        try:
            return read_vocabulary(starter_folder() / _FILE, model_id)
        except MissingPackageError:
            pass
    if not fetch or not hub.is_repo_id(model_id):
        raise NotFoundError(
            f"{model_id!r} is no model of this machine, nor to be fetched from the hub; name one with --model-id"
        )
    return read_vocabulary(hub.fetch(model_id, _FILE), model_id)


def read_vocabulary(path: Path, name: str) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json``.

    Raises:
        NotFoundError: no such file.
        WeightsError: it holds no table of entries.
    """
    try:
        state = path.stat()
        return _read(path, (state.st_mtime_ns, state.st_size), name)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; is {path.parent} the folder of a model?") from error
    except GemlensError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} holds no vocabulary ({reason}); download it again") from error


# Half a second each time; a loop over features asks for the same one.
@lru_cache(maxsize=4)
def _read(path: Path, state: tuple[int, int], name: str) -> Vocabulary:  # noqa: ARG001 - of the file, as the key
    return _vocabulary(json.loads(path.read_text("utf-8")), name)


def _vocabulary(content: Any, name: str) -> Vocabulary:
    entries: dict[str, int] = dict(content["model"]["vocab"])
    added = [(str(each["content"]), int(each["id"]), bool(each.get("special"))) for each in content["added_tokens"]]
    entries |= {text: token for text, token, _ in added}
    size = max(entries.values(), default=-1) + 1
    if not 0 < size < 1 << 24 or min(entries.values()) < 0:
        raise ValueError("no entries")
    pieces = [""] * size
    for text, token in entries.items():
        pieces[token] = text
    return Vocabulary(name, tuple(pieces), frozenset(token for _, token, special in added if special))


def spell(pieces: Sequence[str], decode: Callable[[int], str]) -> list[str]:
    """What each token adds to the text; joined, they are the text.

    A character that the vocabulary lacks is spelled by several byte tokens: the last of them adds the character,
    the others add nothing. A byte that belongs to no character adds U+FFFD. (``tokenizers`` gives up all characters
    of a row of byte tokens when one byte in it is astray, as when an answer ends inside a character; here the whole
    ones survive.)

    Args:
        pieces: vocabulary entries.
        decode: index of a piece that is no byte -> its text.
    """
    added: list[str] = []
    run = bytearray()
    for index, piece in enumerate(pieces):
        if byte := _BYTE.fullmatch(piece):
            run.append(int(byte[1], 16))
            continue
        added += _characters(run)
        run.clear()
        added.append(decode(index))
    return added + _characters(run)


def _characters(run: bytes | bytearray) -> list[str]:
    """What each byte adds to the text."""
    added: list[str] = []
    while len(added) < len(run):
        start = len(added)
        # UTF-8 is prefix-free: the shortest that decodes is the character.
        for size in range(1, 5):
            try:
                added += [""] * (size - 1) + [bytes(run[start : start + size]).decode()]
                break
            except UnicodeDecodeError:
                continue
        else:
            added.append("\ufffd")
    return added
