"""Prompts from the command line, standard input or a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gemlens.errors import InputError, NotFoundError, OutputError

__all__ = ["Prompt", "read_prompts"]


class Prompt(NamedTuple):
    text: str
    system: str | None
    where: str = "the prompt"
    """For messages."""


def read_prompts(prompt: str, file: Path | None, system: str | None) -> list[Prompt]:
    """The prompts to read, at least one.

    Args:
        prompt: the text itself, or ``-`` for standard input.
        file: ``.txt`` (one prompt a line) or ``.jsonl`` (``prompt`` and optional ``system``), read instead of
            ``prompt``.
        system: for prompts that bring none.

    Raises:
        NotFoundError: the file does not exist.
        InputError: an empty prompt or file, another kind of file, a line that is not JSON; names the line.
    """
    system = None if system is None else _argument(system, "--system")
    if file is not None:
        return _from_file(file, system)
    text = _standard_input() if prompt == "-" else _argument(prompt, "--prompt")
    if not text.strip():
        raise InputError("the prompt is empty; give some text with --prompt, or - to read standard input")
    return [Prompt(text, system)]


def _argument(text: str, option: str) -> str:
    """An argument as UTF-8, also where the locale (``LC_ALL=C``) made Python keep its bytes as surrogates."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError as error:
        raise InputError(f"{option} is not UTF-8 text; put it in a UTF-8 file and use --prompts") from error


def _standard_input() -> str:
    """All of it, without the line end that ``echo`` adds: a token of its own to the model."""
    if sys.stdin is None:
        raise InputError("--prompt - reads standard input, which is closed; pipe some text in")
    if sys.stdin.isatty():
        print("reading the prompt from here; end it with Ctrl-D on a line of its own", file=sys.stderr)
    try:
        # The bytes: under LC_ALL=C the text would come with surrogates.
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({_at(error)}); convert it first") from error
    except OSError as error:
        raise InputError(f"standard input cannot be read ({error.strerror}); pipe some text in") from error
    return text.removesuffix("\n").removesuffix("\r")


def _from_file(file: Path, system: str | None) -> list[Prompt]:
    file = file.expanduser()
    parsers: dict[str, Callable[[str, str | None, str], Prompt]] = {".txt": Prompt, ".jsonl": _json_line}
    try:
        if not file.exists():
            raise NotFoundError(f"--prompts {file} does not exist; name a .txt or .jsonl file")
        if file.is_dir():
            raise InputError(f"--prompts {file} is a folder; name a .txt or .jsonl file in it")
        if file.suffix.lower() not in parsers:
            raise InputError(f"--prompts {file}: neither .txt (one prompt a line) nor .jsonl (prompt, optional system)")
        # Not splitlines: it also cuts at characters that JSON strings and prompts may hold, such as U+2028.
        lines = file.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {file} is not UTF-8 text ({_at(error)}); convert it first") from error
    except (NotFoundError, InputError, OutputError):
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--prompts {file} cannot be read ({reason}); name a .txt or .jsonl file") from error
    parse = parsers[file.suffix.lower()]
    found = [parse(line, system, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"--prompts {file} holds no prompt; write one a line")
    return found


def _json_line(line: str, system: str | None, where: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected an object with 'prompt' a line") from error
    if not isinstance(row, dict) or "prompt" not in row:
        there = f"it has {', '.join(map(repr, row)) or 'nothing'}" if isinstance(row, dict) else "it is no object"
        raise InputError(f"{where}: no 'prompt', {there}; expected an object with 'prompt' and optional 'system'")
    text, own = row["prompt"], row.get("system")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: 'prompt' is empty or not text; give some text")
    if not isinstance(own, str | None):
        raise InputError(f"{where}: 'system' is not text; give some text or leave it out")
    for part in filter(None, (text, own)):
        if any("\ud800" <= char <= "\udfff" for char in part):
            raise InputError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no character; correct it")
    return Prompt(text, system if own is None else own or None, where)


def _at(error: UnicodeDecodeError) -> str:
    return f"{error.reason} at byte {error.start}"
