"""An ``Attribution`` in the terminal, as JSON (one object) and as JSONL (a row for each feature at each token)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemlens.records import SCHEMA_VERSION
from gemlens.records.attribution import Attribution, Completeness
from gemlens.records.labels import label_text
from gemlens.report.label_fields import label_dicts
from gemlens.report.table import plain
from gemlens.report.visible import escape_surrogates, number, token_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["baselines", "render", "signed", "terms", "to_dict", "to_json", "to_jsonl"]


def signed(value: float) -> str:
    """An effect in about three digits, its sign always there; what is nothing beside 0.001 is 0."""
    return "0" if abs(value) < 5e-5 else f"{'+' if value > 0 else '−'}{number(abs(value))}"


def terms(complete: Completeness) -> list[tuple[str, float]]:
    """What adds up to the total, by name; without those that the dictionary or the baseline has none of."""
    each = [
        ("features", complete.features),
        ("bias", complete.bias),
        ("skip", complete.skip),
        ("error", complete.error),
    ]
    return [(name, value) for name, value in each if value or name in ("features", "error")]


def baselines(attribution: Attribution) -> str:
    """What the sums are held against, in words."""
    return ", ".join(dict.fromkeys(each.baseline for each in attribution.completeness))


def render(attribution: Attribution, console: Console, *, top_k: int = 15) -> None:
    """Print the sums, the strongest features, the effects by token, and what was verified."""
    from rich.text import Text

    for warning in attribution.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    console.print()
    console.print(Text(plain(f"{attribution.target}: {number(attribution.value)}", console), style="bold"))
    said = f"effects by {attribution.method}; sums against the model with {baselines(attribution)}"
    console.print(Text(plain(said, console), style="dim"))
    console.print(_sums(attribution, console))
    console.print(Text("\nFeatures of largest effect", style="bold"))
    console.print(_strongest(attribution, console, top_k))
    console.print(Text("\nBy token", style="bold"))
    console.print(_by_token(attribution, console))
    if attribution.removed:
        console.print(Text(plain(f"\n{_verified(attribution)}", console), style="bold"))
        console.print(_removed(attribution, console, top_k))


def _sums(attribution: Attribution, console: Console) -> Table:
    table = _table(["dictionary", "features", "bias", "skip", "error", "sum", "actual change"])
    for each in attribution.completeness:
        values = (each.features, each.bias, each.skip, each.error, each.total, each.change)
        table.add_row(_plain(each.dictionary.site, console), *(_plain(signed(value), console) for value in values))
    return table


def _strongest(attribution: Attribution, console: Console, top_k: int) -> Table:
    table = _table(
        ["feature", "effect", "tokens", "activation", "largest at", *_label_column(attribution)], left=[4, 5]
    )
    for strong in attribution.strongest(top_k):
        name = str(strong.feature)
        if len(attribution.effects) > 1:
            name = f"{attribution.effects[strong.layer].dictionary.site}:{name}"
        at = attribution.tokens[strong.position]
        cells = [name, signed(strong.effect), str(strong.tokens), number(strong.activation)]
        cells += [f"{token_name(at)}  #{at.position}", label_text(attribution.labels, strong.layer, strong.feature)]
        table.add_row(*(_plain(cell, console) for cell in cells[: len(table.columns)]))
    return table


def _label_column(attribution: Attribution) -> list[str]:
    return ["label"] if attribution.labels else []


def _by_token(attribution: Attribution, console: Console) -> Table:
    table = _table(["#", "token", "features", "error", "most for", "most against"], left=[1, 4, 5])
    totals, errors = attribution.by_token().tolist(), attribution.errors().tolist()
    for token, total, error in zip(attribution.tokens, totals, errors, strict=True):
        cells = [str(token.position), token_name(token)]
        if token.l0 is None:
            table.add_row(*(_plain(cell, console) for cell in [*cells, "", "", "not read", ""]))
            continue
        ends = [_ends(attribution, token.position, sign) for sign in (1, -1)]
        table.add_row(*(_plain(cell, console) for cell in [*cells, signed(total), signed(error), *ends]))
    return table


def _ends(attribution: Attribution, position: int, sign: int) -> str:
    """The three features of largest effect of one sign at a token."""
    found = []
    for each in attribution.effects:
        here = each.position == position
        site = f"{each.dictionary.site}:" if len(attribution.effects) > 1 else ""
        pairs = zip(each.effect[here].tolist(), each.feature[here].tolist(), strict=True)
        found += [(effect * sign, f"{site}{feature} ({signed(effect)})") for effect, feature in pairs]
    strongest = sorted(found, key=lambda pair: -pair[0])[:3]
    return ", ".join(name for size, name in strongest if size >= 5e-5)


def _verified(attribution: Attribution) -> str:
    known = attribution.correlation
    said = "" if known is None else f": predicted and actual correlate by {known:.3f}"
    count = len(attribution.removed)
    return f"{count} feature{'s' * (count > 1)} removed, one at a time{said}"


def _removed(attribution: Attribution, console: Console, top_k: int) -> Table:
    table = _table(["feature", "predicted", "actual", "at", *_label_column(attribution)], left=[3, 4])
    for each in attribution.removed[:top_k]:
        name = str(each.feature)
        if len(attribution.effects) > 1:
            name = f"{attribution.effects[each.layer].dictionary.site}:{name}"
        at = f"{token_name(attribution.tokens[each.position])}  #{each.position}"
        cells = [name, signed(each.predicted), signed(each.actual), at]
        cells += [label_text(attribution.labels, each.layer, each.feature)]
        table.add_row(*(_plain(cell, console) for cell in cells[: len(table.columns)]))
    return table


def _plain(cell: str, console: Console) -> Any:
    from rich.text import Text

    return Text(plain(cell.replace("−", "-"), console))


def _table(headers: Sequence[str], *, left: Sequence[int] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index in left else "right", no_wrap=True, overflow="ellipsis")
    return table


def to_dict(attribution: Attribution) -> dict[str, Any]:
    """Return the record as plain dicts, lists, strings and finite numbers, keys in the order of the file."""
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(attribution, name) for name in _SHARED},
        "prompt": attribution.prompt,
        "system": attribution.system,
        "prompt_text": attribution.prompt_text,
        "tokens": [
            {
                "position": token.position,
                "token_id": token.token_id,
                "token": token.token,
                "text": token.text,
                "is_special": token.is_special,
                "read": token.l0 is not None,
            }
            for token in attribution.tokens
        ],
        "completeness": [dataclasses.asdict(each) | {"sum": each.total} for each in attribution.completeness],
        "effects": [
            {
                "dictionary": dataclasses.asdict(each.dictionary),
                "writes": list(each.writes),
                **{name: getattr(each, name).tolist() for name in _COLUMNS},
            }
            for each in attribution.effects
        ],
        "removed": [dataclasses.asdict(each) for each in attribution.removed],
        "correlation": attribution.correlation,
        "labels": label_dicts(attribution.labels),
        "warnings": list(attribution.warnings),
        "provenance": dataclasses.asdict(attribution.provenance),
    }


_SHARED = ("model_id", "target", "value", "method")
_COLUMNS = ("position", "feature", "activation", "effect", "bias", "skip", "error")


def to_json(attribution: Attribution) -> str:
    """Return the whole record as JSON that every UTF-8 file can hold."""
    return escape_surrogates(json.dumps(to_dict(attribution), ensure_ascii=False, allow_nan=False)) + "\n"


def to_jsonl(attribution: Attribution) -> str:
    """Return one line for each feature at each token, complete in itself."""
    shared = {name: getattr(attribution, name) for name in _SHARED}
    actual = {(each.layer, each.position, each.feature): each.actual for each in attribution.removed}
    rows = []
    for layer, each in enumerate(attribution.effects):
        named = {"sae_release": each.dictionary.release, "sae_category": each.dictionary.category}
        named |= {"sae_id": each.dictionary.id, "site": each.dictionary.site}
        entries = (getattr(each, name).tolist() for name in ("position", "feature", "activation", "effect"))
        for position, feature, activation, effect in zip(*entries, strict=True):
            row: dict[str, Any] = shared | named | {"position": position, "token": attribution.tokens[position].token}
            row |= {"feature_id": feature, "activation": activation, "effect": effect}
            if label := label_text(attribution.labels, layer, feature):
                row["label"] = label
            if (layer, position, feature) in actual:
                row["actual"] = actual[layer, position, feature]
            rows.append(escape_surrogates(json.dumps(row, ensure_ascii=False, allow_nan=False)) + "\n")
    return "".join(rows)
