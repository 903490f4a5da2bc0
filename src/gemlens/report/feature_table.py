"""The terminal view of features: everything about one, or a line for each of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemlens.records.feature import Example, FeaturePage, Histogram, Related, TokenLogit
from gemlens.report.feature_html import drawn, frequency, signed, token_name
from gemlens.report.table import plain
from gemlens.report.visible import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["render_feature", "render_features"]

_PER_LEVEL = 4
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:-=+*#@"


def render_feature(page: FeaturePage, console: Console) -> None:
    """Print one feature; everything from the model or the user is a ``Text``, so ``[red]`` prints as ``[red]``."""
    from rich.text import Text

    for warning in page.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    _head(page, console)
    if page.never_fired:
        where = f"the {page.tokens_read:,} tokens" if page.tokens_read else "the tokens"
        console.print(Text(f"It never fired on {where} that were read for this evidence."))
    for index, level in enumerate(page.levels):
        if not level.on_file:
            continue
        name = f"above {number(level.low)}" if index == 0 else f"{number(level.low)} to {number(level.high)}"
        console.print()
        console.print(Text.assemble((name, "bold"), (f"  {level.on_file:,} on file", "dim")))
        for example in level.examples[:_PER_LEVEL]:
            console.print(_line(example, console), no_wrap=True, overflow="ellipsis")
    for name, found in (("promotes", page.promoted), ("suppresses", page.suppressed)):
        _print(console, name, "  ".join(_logit(each, console) for each in found))
    if page.histogram:
        _print(console, "activations" if page.histogram.complete else "on file", _bars(page.histogram, console))
    if page.positions:
        counts = (page.positions.first, page.positions.middle, page.positions.last)
        shares = (f"{100 * count / (sum(counts) or 1):.0f} %" for count in counts)
        names = ("first third", "middle", "last third")
        _print(console, "in a text", "  ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True)))
    _print(console, "write alike", _related(page.neighbours))
    _print(console, "fire together", _related(page.coactive))
    _print(console, "dimensions", _related(page.basis))
    _print(console, "MLP neurons", _related(page.neurons))


def render_features(pages: Sequence[FeaturePage], console: Console) -> None:
    """Print a line for each."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    firsts = [(page, frequency(page).partition(" (")[0]) for page in pages]
    numbers = (
        ("feature", max(7, *(len(str(page.feature_id)) for page in pages))),
        ("fires on", max(8, *(len(said) for _, said in firsts))),
        ("strongest", 9),
    )
    for header, width in numbers:
        table.add_column(header, justify="right", no_wrap=True, width=width)
    # What is left of the line beside the numbers and the gaps between columns.
    room = max((console.width - sum(width for _, width in numbers) - 4 * 3) // 2, 10)
    for header in ("label, or what it promotes", "strongest on"):
        table.add_column(header, no_wrap=True, overflow="ellipsis", width=room)
    for page, fires in firsts:
        said = page.label.text if page.label else "  ".join(token_name(each) for each in page.promoted[:5])
        best = page.examples[:1]
        table.add_row(
            Text(str(page.feature_id)),
            Text(fires),
            Text(number(page.max_activation) if page.max_activation else "none"),
            Text(plain(said, console), style="" if page.label else "dim"),
            _words(best[0], console, before=4, after=3) if best else Text("never fired", style="dim"),
        )
    console.print(table)


def _head(page: FeaturePage, console: Console) -> None:
    from rich.text import Text

    info = page.dictionary
    title = Text.assemble((f"Feature {page.feature_id}", "bold"), (f"  {plain(info.site, console)}", "dim"))
    console.print(title)
    console.print(Text(plain("/".join(filter(None, [info.release, info.category, info.id])), console), style="dim"))
    if page.label:
        label, source = plain(page.label.text, console), plain(page.label.source, console)
        sure = f", confidence {plain(page.label.confidence, console)}" if page.label.confidence else ""
        console.print(Text.assemble(label, (f"  labelled by {source}{sure}", "dim")))
    strongest = number(page.max_activation) if page.max_activation else "none"
    fires = frequency(page) if page.never_fired or page.frequency is None else f"on {frequency(page)}"
    console.print(Text(f"fires {fires}, strongest {strongest}, {page.on_file:,} activations on file"))


def _line(example: Example, console: Console) -> Text:
    from rich.text import Text

    room = max(console.width - 12, 20)
    # The words before it get two thirds of the line.
    line = Text(f"{number(example.activation):>8}  ", style="dim")
    words = _words(example, console, before=12, after=12)
    if len(words) > room:
        words = _words(example, console, before=max(2, room // 10), after=max(2, room // 16))
    return line + words


def _words(example: Example, console: Console, *, before: int, after: int) -> Text:
    from rich.text import Text

    start, stop = max(0, example.peak - before), example.peak + after + 1
    words = Text("…" if example.cut_before or start > 0 else "")
    for at in range(start, min(stop, len(example.tokens))):
        token = example.tokens[at]
        text = plain_words(drawn([token]), console)
        style = "dim" if token.is_special else ""
        if at == example.peak:
            style = "bold reverse"
        elif token.activation is not None:
            style = "underline"
        words.append(text, style=style)
    return words


def plain_words(parts: Sequence[tuple[str, str]], console: Console) -> str:
    """Parts of a text in characters that the terminal has, spaces kept."""
    text = "".join(part for _, part in parts)
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _print(console: Console, name: str, said: str) -> None:
    from rich.text import Text

    if said:
        console.print(Text.assemble((f"\n{name}  ", "bold"), plain(said, console) if "  " not in said else said))


def _logit(each: TokenLogit, console: Console) -> str:
    return f"{plain(token_name(each), console)} {signed(each.logit)}"


def _related(found: Sequence[Related]) -> str:
    return "  ".join(f"{each.index} ({each.value:.2f})" for each in found)


def _bars(found: Histogram, console: Console) -> str:
    """On a square-root scale where it is of all activations, as on the page."""
    try:
        _BLOCKS.encode(console.encoding)
        blocks = _BLOCKS
    except UnicodeEncodeError:
        blocks = _ASCII_BLOCKS
    most = max(found.counts)
    power = 0.5 if found.complete else 1.0
    bars = "".join(blocks[round((count / most) ** power * 8) or (1 if count else 0)] for count in found.counts)
    low = "0" if found.all_below else number(found.edges[0])
    return f"{low} {bars} {number(found.edges[-1])}"
