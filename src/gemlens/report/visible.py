"""Token text made visible: what a reader cannot see (newlines, tabs, control characters) gets a sign of its own.

Every view shows token text through this file, so that a token looks the same in the terminal, the page and a notebook.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby
from typing import Literal

from gemlens.records import TokenRecord

__all__ = ["Kind", "escape_surrogates", "inline", "number", "one_line", "parts", "token_name"]

Kind = Literal["text", "newline", "tab", "escape"]

_SPACE = re.compile(r"\s")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Explicit direction marks reorder the words around them: the one kind of invisible character that is never drawn as is.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def parts(text: str) -> list[tuple[Kind, str]]:
    """Split ``text`` into runs to draw as they are and characters to draw by a sign; ``escape`` parts read ``\\x1b``.

    Joiners and other format characters are kept inside a word (Persian and emoji need them) and escaped only in a
    token that has nothing else to click on.
    """
    hidden = {"Cc", "Cs", "Cn", "Zl", "Zp"}
    if all(unicodedata.category(char) == "Cf" for char in text):
        hidden.add("Cf")

    def kind(char: str) -> Kind:
        if char == "\n":
            return "newline"
        if char == "\t":
            return "tab"
        return "escape" if char in _DIRECTION or unicodedata.category(char) in hidden else "text"

    found: list[tuple[Kind, str]] = []
    for how, run in groupby(text, kind):
        if how == "text":
            found.append((how, "".join(run)))
        else:
            found.extend((how, _escape(char) if how == "escape" else char) for char in run)
    return found


def inline(text: str) -> str:
    """Return ``text`` on one line: spaces as ``·``, newlines as ``↵``, tabs as ``⇥``, control characters escaped."""
    signs = {"newline": "↵", "tab": "⇥"}
    return "".join(signs.get(kind) or _SPACE.sub("·", part) for kind, part in parts(text))


def token_name(token: TokenRecord) -> str:
    """Return what a token is called where it stands alone; one without text goes by its piece, which says its byte."""
    return inline(token.text) or inline(token.token) or "∅"


def one_line(text: str) -> str:
    """Return ``text`` with its words as they are, on one line, control characters escaped: for prompts and warnings."""
    return "".join(part for _, part in parts(" ".join(text.split())))


def number(value: float) -> str:
    """Return an activation in about three digits, never with an exponent where it is 0.001 or more."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def escape_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot hold, by ``\\udXXX``: inside JSON that is the same string again."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
