"""``gemlens labels add``: look at a feature's examples, and say what it is.

In the terminal it asks one thing after another: ten examples or more, the theme they share, whether there are several,
where in a text it fires, how sure you are. With ``--text`` it asks nothing.
"""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, tell
from gemlens.app.label_evidence import open_contexts
from gemlens.app.label_options import LabelIdOption, LabelReleaseOption, chosen
from gemlens.errors import GemlensError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.labels import Context, Label
    from gemlens.scope.label_names import Named

__all__ = ["add"]

_FIRST, _MORE = 10, 10
_METHOD = "hand"


def add(
    feature: Annotated[int, typer.Argument(help="Number of the feature.", metavar="FEATURE")],
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    text: Annotated[
        str | None, typer.Option("--text", help="The label; asked for unless given.", metavar="TEXT")
    ] = None,
    confidence: Annotated[str | None, typer.Option(help="high, medium or low; with --text.", metavar="NAME")] = None,
    polysemantic: Annotated[
        bool | None, typer.Option("--polysemantic/--one-meaning", help="With --text: has it several meanings?")
    ] = None,
    position: Annotated[str | None, typer.Option(help="With --text: where in a text it fires.", metavar="TEXT")] = None,
    source: Annotated[str | None, typer.Option(help="Who says so.  [default: your user name]", metavar="NAME")] = None,
    model_id: Annotated[
        str | None,
        typer.Option(help="Model whose vocabulary reads the examples.  [default: what they say]", metavar="MODEL"),
    ] = None,
) -> None:
    """Store a label of your own: shows examples, asks for theme, other meanings, position and confidence."""
    from gemlens.records.labels import CONFIDENCES, Label
    from gemlens.scope.labels import LabelStore

    if confidence is not None and confidence not in CONFIDENCES:
        raise InputError(f"--confidence {confidence!r}: one of {', '.join(CONFIDENCES)}")
    if text is not None and not text.strip():
        raise InputError("--text is empty; say what the feature is")
    dictionary = chosen(sae_release, sae_id)
    if feature < 0 or (dictionary.width is not None and feature >= dictionary.width):
        last = "" if dictionary.width is None else f" to {dictionary.width - 1:,}"
        raise InputError(f"{dictionary.key} has no feature {feature}; they are numbered from 0{last}")
    who = source or _user()
    console = notes()
    if text is None:
        label = _asked(console, dictionary, feature, who, model_id)
    else:
        label = Label(
            dictionary.key, feature, text.strip(), who, _METHOD, None, confidence, polysemantic, position,
        )  # fmt: skip
    with LabelStore() as store:
        store.declare(dictionary)
        store.add([label])
    tell(console, f"stored for feature {feature} of {dictionary.key}")


def _asked(console: Console, dictionary: Named, feature: int, source: str, model_id: str | None) -> Label:
    from gemlens.records.labels import CONFIDENCES, Label
    from gemlens.scope.label_schema import is_store
    from gemlens.scope.labels import LabelStore, label_file

    if is_store(label_file()):
        with LabelStore() as store:
            for known in store.of(dictionary.key, [feature]).get(feature, []):
                tell(console, f"known: {_plain(known.shown, console)} ({_plain(known.source, console)})")
    seen = _show(console, dictionary, feature, model_id)
    theme = ""
    while not theme:
        theme = _ask("Theme: what do the bracketed tokens share").strip()
    several = _confirm("Has it several meanings (is it polysemantic)")
    where = _ask("Where in a text does it fire: start, middle, end, anywhere", "anywhere")
    sure = ""
    while sure not in CONFIDENCES:
        sure = _ask("How sure are you: high, medium, low", "medium").strip().lower()
    return Label(dictionary.key, feature, theme, source, _METHOD, None, sure, several, where.strip() or None, seen)


def _show(console: Console, dictionary: Named, feature: int, model_id: str | None) -> int | None:
    """Print examples until enough were seen; how many, or None where there is no evidence."""
    from gemlens.report.labels import render_contexts

    try:
        with busy(console, "Reading the evidence"):
            contexts = open_contexts(dictionary, model_id)
            found: list[Context] = contexts.firing(feature)
            promoted = contexts.promoted(feature)
    except (GemlensError, ImportError) as error:
        tell(console, f"no examples at hand: {error}")
        if dictionary.neuronpedia:
            tell(console, f"look at https://www.neuronpedia.org/{dictionary.neuronpedia}/{feature} first")
        return None
    if not found:
        tell(console, "it fires on nothing that is on file")
        return 0
    seen = 0
    while seen < len(found) and (not seen or _confirm("More examples")):
        render_contexts(found[seen : seen + _MORE], console)
        seen = min(seen + _MORE, len(found))
    if promoted:
        tell(console, f"promotes: {', '.join(_plain(token, console) for token in promoted)}")
    if seen < _FIRST:
        tell(console, f"only {seen} examples are on file; a label should rest on {_FIRST} or more")
    return seen


def _ask(question: str, default: str | None = None) -> str:
    """One line from whoever sits there, or from a pipe. (Typer's own prompt writes blanks to standard output.)"""
    print(f"{question}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr, flush=True)
    try:
        said = sys.stdin.readline() if sys.stdin is not None else ""
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason}); type it, or convert it first") from error
    if not said:  # the end of the input, before all was said
        raise typer.Abort
    return said.strip() or default or ""


def _confirm(question: str) -> bool:
    return _ask(f"{question} (y/n)", "n").lower() in ("y", "yes")


def _plain(text: str, console: Console) -> str:
    from gemlens.report.table import plain

    return plain(text, console)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "me"
