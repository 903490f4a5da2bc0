"""The terminal view: one table of tokens and one of the strongest features for each dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gemlens.records import Analysis, FeatureActivation, TokenRecord
from gemlens.report.summary import l0, strongest
from gemlens.report.visible import number, one_line, token_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["plain", "render"]

TOKEN_WIDTH = 16
STRONGEST = 10
# The signs of report.visible where the terminal has only ASCII: "\xb7cat" would be hard to read.
_ASCII_SIGNS = str.maketrans({"·": "_", "↵": "\\n", "⇥": "\\t"})


def render(analysis: Analysis, console: Console) -> None:
    """Print the analysis; everything from the model or the user is a ``Text``, so ``[red]`` prints as ``[red]``."""
    from rich.text import Text

    for warning in analysis.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    for index, dictionary in enumerate(analysis.dictionaries):
        console.print()
        console.print(Text(plain(dictionary.site, console), style="bold"))
        name = f"{dictionary.release}/{dictionary.category}/{dictionary.id}"
        console.print(Text(plain(name, console), style="dim"))
        console.print(_tokens(analysis, index, console))
    for index, dictionary in enumerate(analysis.dictionaries):
        console.print()
        site = f", {dictionary.site}" if len(analysis.dictionaries) > 1 else ""
        console.print(Text(plain(f"Strongest features over the whole text{site}", console), style="bold"))
        console.print(_strongest(analysis, index, console))


def _tokens(analysis: Analysis, index: int, console: Console) -> Table:
    from rich.text import Text

    table = _table(
        ("#", "right", None), ("token", "left", TOKEN_WIDTH), ("L0", "right", None), ("features", "left", None)
    )
    # What is left of the line beside the other columns and the gaps between them.
    room = max(console.width - len(str(len(analysis.tokens))) - TOKEN_WIDTH - 5 - 7, 16)
    cell = max((len(_pair(f)) for token in analysis.tokens for f in token.features if f.dictionary == index), default=0)
    generated = False
    for token, active in zip(analysis.tokens, l0(analysis, index), strict=True):
        if token.is_generated and not generated:
            generated = True
            table.add_row("", Text("generated", style="italic dim"), "", "")
        features = [f for f in token.features if f.dictionary == index]
        last = Text("not read", style="dim") if active is None else _grid(features, cell, room)
        table.add_row(*_row(token, active, console), last)
    return table


def _row(token: TokenRecord, active: int | None, console: Console) -> list[Text]:
    from rich.text import Text

    style = "green" if token.is_generated else "dim" if token.is_special or not token.text else ""
    return [
        Text(str(token.position), style="dim"),
        Text(_encodable(token_name(token), console), style=style),
        Text("" if active is None else str(active), style="dim"),
    ]


def _strongest(analysis: Analysis, index: int, console: Console) -> Table:
    from rich.text import Text

    headers = ("feature", "max", "mean", "tokens", "strongest on")
    named = index < len(analysis.labels) and bool(analysis.labels[index])
    rows = []
    for feature in strongest(analysis, index, STRONGEST):
        peak = analysis.tokens[feature.token]
        cells = (
            str(feature.feature_id),
            number(feature.max_activation),
            number(feature.mean_activation),
            str(feature.active_tokens),
        )
        where = Text.assemble(_encodable(token_name(peak), console), (f"  #{peak.position}", "dim"))
        rows.append(
            [*map(Text, cells), where, *([_label(analysis, index, feature.feature_id, console)] if named else [])]
        )
    # A label gets what is left of the line: rich would take its room from the numbers.
    used = sum(max([len(header), *(row[i].cell_len for row in rows)]) + 3 for i, header in enumerate(headers))
    room = max(console.width - used, 12)
    columns: list[tuple[str, Literal["left", "right"], int | None]] = [(name, "right", None) for name in headers[:-1]]
    columns += [(headers[-1], "left", None), ("label", "left", room)]
    table = _table(*columns[: None if named else -1])
    for row in rows:
        table.add_row(*row)
    return table


def _label(analysis: Analysis, index: int, feature: int, console: Console) -> Text:
    from rich.text import Text

    label = analysis.label_of(index, feature)
    return Text(plain(label.shown, console) if label else "")


def _table(*columns: tuple[str, Literal["left", "right"], int | None]) -> Table:
    """Return an empty table of (header, alignment, greatest width); a longer cell is cut off with an ellipsis."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for header, justify, width in columns:
        table.add_column(header, justify=justify, max_width=width, no_wrap=True, overflow="ellipsis")
    return table


def _grid(features: list[FeatureActivation], cell: int, width: int) -> Text:
    """Set features in columns ``cell`` wide; rich would break a line between a feature and its activation."""
    from rich.text import Text

    across = max((width + 2) // (cell + 2), 1)
    text = Text()
    for i, feature in enumerate(features):
        if i:
            text.append("\n" if i % across == 0 else "  ")
        pair = _pair(feature)
        text.append(pair).append(" " * (cell - len(pair)))
        text.stylize("dim", len(text) - cell + len(str(feature.feature_id)))
    return text


def _pair(feature: FeatureActivation) -> str:
    return f"{feature.feature_id} ({number(feature.activation)})"


def plain(text: str, console: Console) -> str:
    """Return ``text`` on one line, in characters that the terminal's encoding has."""
    return _encodable(one_line(text), console)


def _encodable(text: str, console: Console) -> str:
    """Return ``text`` in characters that the terminal's encoding has."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII_SIGNS)
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
