"""A ``FeatureLens`` and a ``ResidualLens`` in the terminal, as JSON (one object) and as JSONL (a row for each)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gemlens.records import SCHEMA_VERSION
from gemlens.records.labels import label_text
from gemlens.records.lens import FeatureLens, FeatureTokens, ResidualLens, TokenLogit
from gemlens.report.label_fields import label_dicts
from gemlens.report.table import plain
from gemlens.report.visible import escape_surrogates, inline, token_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["heading", "percent", "render_features", "render_residual", "to_json", "to_jsonl", "token_list"]


def heading(lens: FeatureLens) -> str:
    """What was looked at, and how far it agrees with what was shipped."""
    said = f"{lens.dictionary.site}, {lens.dictionary.id}: what its rows at {', '.join(lens.writes)} add to the logits"
    if lens.agreement is None:
        return said
    return f"{said}; {100 * lens.agreement:.0f} % of the top tokens that came with it"


def token_list(tokens: Sequence[TokenLogit], limit: int | None = None) -> list[tuple[str, str]]:
    """Texts and logits as they are shown."""
    return [(inline(token.text) or "∅", f"{token.logit:+.3g}") for token in tokens[:limit]]


def percent(probability: float) -> str:
    return "<1 %" if probability < 0.01 else f"{100 * probability:.0f} %"


def render_features(lens: FeatureLens, console: Console) -> None:
    """Print the tokens that each feature speaks for and against."""
    _warnings(lens.warnings, console)
    console.print()
    console.print(_text(heading(lens), console, "bold"))
    table = _table("feature", *(["label"] if lens.labels else []), "for", "against")
    for each in lens.features:
        ends = (", ".join(f"{text} {logit}" for text, logit in token_list(end)) for end in (each.top, each.bottom))
        label = [label_text(lens.labels, 0, each.feature)] if lens.labels else []
        table.add_row(str(each.feature), *(_text(cell, console) for cell in (*label, *ends)))
    console.print(table)


def render_residual(lens: ResidualLens, console: Console, *, position: int = -1) -> None:
    """Print what each layer predicts after one token, and where the model's own answer stands there."""
    _warnings(lens.warnings, console)
    at = lens.tokens[position]
    console.print()
    console.print(_text(f"What each layer predicts after {token_name(at)}, token {at.position}", console, "bold"))
    likeliest = inline(lens.texts[int(lens.token_ids[-1, position, 0])])
    table = _table("layer", "likeliest next tokens", f"{likeliest}", "rank")
    for layer in range(lens.layers):
        pairs = zip(lens.token_ids[layer, position].tolist(), lens.probability[layer, position].tolist(), strict=True)
        shown = ", ".join(f"{inline(lens.texts[token]) or '∅'} {percent(chance)}" for token, chance in pairs)
        rank = str(int(lens.rank[layer, position]) + 1)
        final = percent(float(lens.final[layer, position]))
        table.add_row(str(layer), *(_text(cell, console) for cell in (shown, final, rank)))
    console.print(table)


def _warnings(warnings: Sequence[str], console: Console) -> None:
    from rich.text import Text

    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))


def _text(said: str, console: Console, style: str = "") -> Any:
    from rich.text import Text

    return Text(plain(said, console), style=style)


def _table(*headers: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for header in headers:
        table.add_column(Text(header))
    return table


def to_json(lens: FeatureLens | ResidualLens) -> str:
    """Return the whole record as JSON that every UTF-8 file can hold."""
    about = {"schema_version": SCHEMA_VERSION, "model_id": lens.model_id}
    if isinstance(lens, FeatureLens):
        about |= {
            "dictionary": dataclasses.asdict(lens.dictionary),
            "writes": list(lens.writes),
            "agreement": lens.agreement,
            "features": [_feature(lens, each) for each in lens.features],
            "labels": label_dicts(lens.labels),
        }
    else:
        about |= {"prompt": lens.prompt, "system": lens.system, "prompt_text": lens.prompt_text}
        about["rows"] = list(_rows(lens))
    about |= {"warnings": list(lens.warnings), "provenance": dataclasses.asdict(lens.provenance)}
    return _dumped(about) + "\n"


def to_jsonl(lens: FeatureLens | ResidualLens) -> str:
    """Return one line for each feature, or for each layer at each token, complete in itself."""
    shared: dict[str, Any] = {"model_id": lens.model_id}
    if isinstance(lens, ResidualLens):
        return "".join(_dumped(shared | row) + "\n" for row in _rows(lens))
    info = lens.dictionary
    shared |= {"sae_release": info.release, "sae_category": info.category, "sae_id": info.id, "site": info.site}
    return "".join(_dumped(shared | _feature(lens, each)) + "\n" for each in lens.features)


def _feature(lens: FeatureLens, each: FeatureTokens) -> dict[str, Any]:
    label = label_text(lens.labels, 0, each.feature)
    return dataclasses.asdict(each) | {"agreement": each.agreement} | ({"label": label} if label else {})


def _rows(lens: ResidualLens) -> Iterator[dict[str, Any]]:
    for layer in range(lens.layers):
        for token in lens.tokens:
            ids = lens.token_ids[layer, token.position].tolist()
            chances = lens.probability[layer, token.position].tolist()
            yield {
                "layer": layer,
                "position": token.position,
                "token": token.token,
                "top": [
                    {"token_id": each, "text": lens.texts[each], "probability": chance}
                    for each, chance in zip(ids, chances, strict=True)
                ],
                "final_probability": float(lens.final[layer, token.position]),
                "final_rank": int(lens.rank[layer, token.position]),
            }


def _dumped(row: dict[str, Any]) -> str:
    return escape_surrogates(json.dumps(row, ensure_ascii=False, allow_nan=False))
