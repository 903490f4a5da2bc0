"""Rows of well-known multiple-choice sets, rendered as lm-evaluation-harness renders them.

    set          fields                                   context, then each continuation
    PIQA         goal sol1 sol2 label                     "Question: {goal}\\nAnswer:"  " {sol}"
    llm-foundry  query choices gold                       "{query}\\nAnswer:"  " {choice}"
    HellaSwag    ctx endings label (activity_label)       "{activity}: {ctx}"  " {ending}"
    ARC          question choices{text, label} answerKey  "Question: {question}\\nAnswer:"  " {choice}"
    COPA         premise question choice1 choice2 label   "{premise} because"  " {choice}"
    WinoGrande   sentence option1 option2 answer          what stands before _, with each option  what follows
    any other    by a mapping of fields                   as ARC

What differs is said here: a continuation begins with the one space that ends the context in print, since Gemma's
tokens carry the space before a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gemlens.errors import InputError

__all__ = ["Row", "Shape", "shape_of"]


class Row(NamedTuple):
    question: str
    choices: tuple[str, ...]
    gold: int | None
    """None: the row has no answer."""
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]


Shape = Callable[[Mapping[str, Any], str], Row]
"""A row and where it stands, for messages."""

_NONE = ("", "-1", None, -1)


def shape_of(row: Mapping[str, Any], fields: Mapping[str, str] | None, where: str) -> Shape:
    """How to read rows like this one.

    Args:
        fields: the user's names for ``question``, ``choices`` and ``label``; the known shapes are not tried then.

    Raises:
        InputError: no known shape, with the fields that were found.
    """
    if fields:
        return _mapped(fields)
    for needed, shape in _KNOWN:
        if set(needed) <= set(row):
            return shape
    there = ", ".join(map(str, row)) or "nothing"
    known = "; ".join(", ".join(needed) for needed, _ in _KNOWN)
    # The shape that the row comes nearest to says which field is missing.
    needed, _ = max(_KNOWN, key=lambda each: len(set(each[0]) & set(row)) / len(each[0]))
    missing = [name for name in needed if name not in row]
    near = f"no {missing[0]!r}; " if len(missing) < len(needed) else ""
    raise InputError(
        f"{where}: {near}it has {there}; known are {known}; others with --fields question=NAME,choices=A+B,label=NAME"
    )


def _piqa(row: Mapping[str, Any], where: str) -> Row:
    return _asked(_text(row, "goal", where), _texts(row, ("sol1", "sol2"), where), _index(row, "label", where))


def _llm_foundry(row: Mapping[str, Any], where: str) -> Row:
    query = _text(row, "query", where).rstrip()
    choices = _list(row["choices"], "choices", where)
    context = f"{query}\nAnswer:"
    question = query.removeprefix("Question: ")
    return _row(
        question, choices, _index(row, "gold", where), [context] * len(choices), [f" {each}" for each in choices]
    )


def _hellaswag(row: Mapping[str, Any], where: str) -> Row:
    if "ctx_a" in row and "ctx_b" in row:
        context = f"{_text(row, 'ctx_a', where)} {str(row['ctx_b'] or '').capitalize()}"
    else:
        context = _text(row, "ctx", where)
    if row.get("activity_label"):
        context = f"{row['activity_label']}: {context}"
    choices = _list(row["endings"], "endings", where)
    context, cleaned = _without_marks(context), [_without_marks(each) for each in choices]
    return _row(
        context, cleaned, _index(row, "label", where), [context] * len(cleaned), [f" {each}" for each in cleaned]
    )


def _arc(row: Mapping[str, Any], where: str) -> Row:
    given = row["choices"]
    if not isinstance(given, Mapping) or not {"text", "label"} <= set(given):
        raise InputError(f"{where}: 'choices' has no 'text' and 'label'; expected a list of each")
    names = [str(name) for name in given["label"]]
    key = row["answerKey"]
    if key in _NONE:
        gold = None
    elif str(key) in names:
        gold = names.index(str(key))
    else:
        raise InputError(f"{where}: answerKey {key!r} is none of the labels {', '.join(names)}")
    return _asked(_text(row, "question", where), _list(given["text"], "choices", where), gold)


def _copa(row: Mapping[str, Any], where: str) -> Row:
    words = {"cause": "because", "effect": "therefore"}
    asked = row["question"]
    if asked not in words:
        raise InputError(f"{where}: 'question' is {asked!r}; expected cause or effect")
    context = f"{_text(row, 'premise', where).strip().removesuffix('.')} {words[asked]}"
    choices = _texts(row, ("choice1", "choice2"), where)
    after = [f" {each[:1].lower()}{each[1:]}" for each in choices]
    return _row(context, choices, _index(row, "label", where), [context] * 2, after)


def _winogrande(row: Mapping[str, Any], where: str) -> Row:
    sentence = _text(row, "sentence", where)
    if sentence.count("_") != 1:
        raise InputError(f"{where}: 'sentence' has {sentence.count('_')} blanks; expected one _")
    before, after = sentence.split("_")
    options = _texts(row, ("option1", "option2"), where)
    answer = row["answer"]
    # Counted from 1.
    gold = None if answer in _NONE else _number(answer, "answer", where) - 1
    return _row(sentence, options, gold, [before + each for each in options], [f" {after.strip()}"] * 2)


# The more particular first: COPA also has a question, and PIQA's fields are nobody else's.
_KNOWN: list[tuple[tuple[str, ...], Shape]] = [
    (("goal", "sol1", "sol2"), _piqa),
    (("query", "choices", "gold"), _llm_foundry),
    (("ctx", "endings", "label"), _hellaswag),
    (("premise", "question", "choice1", "choice2", "label"), _copa),
    (("sentence", "option1", "option2", "answer"), _winogrande),
    (("question", "choices", "answerKey"), _arc),
]


def _mapped(fields: Mapping[str, str]) -> Shape:
    columns = fields["choices"].split("+")

    def shape(row: Mapping[str, Any], where: str) -> Row:
        for name in (fields["question"], *columns, fields["label"]):
            if name not in row:
                there = ", ".join(map(str, row)) or "nothing"
                raise InputError(f"{where}: no {name!r}, it has {there}; name those with --fields")
        one = columns[0]
        choices = _texts(row, columns, where) if len(columns) > 1 else _list(row[one], one, where)
        label = row[fields["label"]]
        text = str(label).strip()
        if label in _NONE:
            gold = None
        elif text in columns:  # the label names the column of the right choice
            gold = columns.index(text)
        elif len(text) == 1 and text.isalpha():
            gold = ord(text.upper()) - ord("A")
        else:
            gold = _number(label, fields["label"], where)
        return _asked(_text(row, fields["question"], where), choices, gold)

    return shape


def _asked(question: str, choices: Sequence[str], gold: int | None) -> Row:
    context = f"Question: {question}\nAnswer:"
    return _row(question, choices, gold, [context] * len(choices), [f" {each}" for each in choices])


def _row(
    question: str, choices: Sequence[str], gold: int | None, contexts: Sequence[str], continuations: Sequence[str]
) -> Row:
    return Row(question, tuple(choices), gold, tuple(contexts), tuple(continuations))


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        there = ", ".join(map(str, row)) or "nothing"
        raise InputError(f"{where}: no {name!r}, it has {there}; expected all rows alike")
    return _checked(row[name], name, where)


def _texts(row: Mapping[str, Any], names: Sequence[str], where: str) -> list[str]:
    return [_text(row, name, where) for name in names]


def _list(value: Any, name: str, where: str) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"{where}: {name!r} is no list; expected the choices as texts")
    return [_checked(each, name, where) for each in value]


def _checked(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is no text but {type(value).__name__}; expected a string there")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where}: half of a surrogate pair in {name!r}, which is no character; write the file anew")
    return value


def _index(row: Mapping[str, Any], name: str, where: str) -> int | None:
    """The label of a row; None where there is none, as in a test split."""
    value = row.get(name)
    return None if value in _NONE else _number(value, name, where)


def _number(value: Any, name: str, where: str) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: {name!r} is {str(value)[:50]!r}; expected the number of the right choice"
        ) from error


def _without_marks(text: str) -> str:
    """WikiHow's artefacts in HellaSwag, as the harness cleans them."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
