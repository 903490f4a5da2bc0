"""Prompts from the command line, standard input or a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gemlens.errors import InputError, NotFoundError

__all__ = ["Prompt", "read_prompts"]


class Prompt(NamedTuple):
    text: str
    system: str | None


def read_prompts(prompt: str, file: Path | None, system: str | None) -> list[Prompt]:
    """The prompts to read, at least one.

    Args:
        prompt: the text itself, or ``-`` for standard input.
        file: ``.txt`` (one prompt a line) or ``.jsonl`` (``prompt`` and optional ``system``); it wins over ``prompt``.
        system: for prompts that bring none.

    Raises:
        NotFoundError: the file does not exist.
        InputError: an empty prompt or file, another kind of file, a line that is not JSON; names the line.
    """
    if file is None:
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text.strip():
            raise InputError("the prompt is empty; give some text with --prompt, or - to read standard input")
        return [Prompt(text, system)]
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"--prompts {file} does not exist; name a .txt or .jsonl file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file} cannot be read as UTF-8 text ({error})") from error
    if file.suffix not in (".txt", ".jsonl"):
        raise InputError(f"--prompts {file}: neither .txt (one prompt a line) nor .jsonl (prompt, optional system)")
    parse = _json_line if file.suffix == ".jsonl" else _plain_line
    found = [parse(line, system, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"--prompts {file} holds no prompt")
    return found


def _plain_line(line: str, system: str | None, _where: str) -> Prompt:
    return Prompt(line, system)


def _json_line(line: str, system: str | None, where: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); expected an object with 'prompt'") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise InputError(f"{where}: no text under 'prompt'")
    if not isinstance(own := row.get("system") or system, str | None):
        raise InputError(f"{where}: 'system' is not text")
    return Prompt(row["prompt"], own)
