"""Labels without any model: the tokens on which a feature fires, and words that its passages share.

1. Tokens: those with most of the activation on file, until they hold 60 % of it, at most three.
2. Words: in a fifth of the passages at least, and three times as often as in passages where the feature is silent;
   those that carry it are left out, since 1 has them.
3. How well the tokens tell held-out passages from silent ones goes along as a score (``label_scores.by_tokens``).

Such a label says what is to be seen, not what it means; it is marked as automatic wherever it is shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gemlens.errors import InputError
from gemlens.records.labels import Context, Label
from gemlens.study.contexts import Contexts
from gemlens.study.label_scores import by_tokens, top_tokens

__all__ = ["METHOD", "auto_label"]

METHOD = "auto"
_ENOUGH = 0.6
_TOKENS, _WORDS = 3, 3
_SHARE, _LIFT = 0.2, 3.0
_SILENT = 64
_LEAST = 4
_WORD = re.compile(r"\w{3,}")


def auto_label(dictionary: str, feature: int, contexts: Contexts, *, source: str = "gemlens") -> Label | None:
    """The label; None where the feature fires on no passage that is on file."""
    firing = contexts.firing(feature)
    ranked = top_tokens(firing, 10)
    if not ranked:
        return None
    silent = contexts.silent(feature, _SILENT)
    carried: list[tuple[str, float]] = []
    for token, share in ranked[:_TOKENS]:
        if sum(each for _, each in carried) < _ENOUGH:
            carried.append((token, share))
    covered = sum(share for _, share in carried)
    quoted = ", ".join(f"“{_visible(token)}”" for token, _ in carried)
    text = quoted if covered >= _ENOUGH else f"{quoted} and others"
    if near := shared_words(firing, silent, leave_out={token for token, _ in ranked}):
        text += f" · near: {', '.join(near)}"
    scores = []
    if len(firing) >= _LEAST:
        with suppress(InputError):  # too few silent passages to hold it against
            scores = [by_tokens(firing, silent)]
    return Label(dictionary, feature, text, source, METHOD, scores=tuple(scores), examples=len(firing))


def shared_words(firing: Sequence[Context], silent: Sequence[Context], *, leave_out: Iterable[str]) -> list[str]:
    """Words that passages where the feature fires have more often than others, most often first."""
    here, elsewhere = _counted(firing), _counted(silent)
    known = set(leave_out)
    found = []
    for word, count in here.items():
        share = count / len(firing)
        # One more than were seen: a word that is in none of a few silent passages may be in one of many.
        usual = (elsewhere[word] + 1) / (len(silent) + 1)
        if word not in known and count >= _LEAST and share >= _SHARE and share >= _LIFT * usual:
            found.append((-share, word))
    return [word for _, word in sorted(found)[:_WORDS]]


def _counted(contexts: Iterable[Context]) -> Counter[str]:
    """Passages that hold each word."""
    return Counter(
        word for each in contexts for word in {word.casefold() for word in _WORD.findall(each.text) if word.isalpha()}
    )


def _visible(token: str) -> str:
    """Without what would break a line or end a quotation."""
    return " ".join(token.split()).replace("“", "'").replace("”", "'") or "space"
