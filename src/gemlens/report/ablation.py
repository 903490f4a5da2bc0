"""An ``Ablation`` in the terminal, as JSON and as JSONL (one row a feature)."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from gemlens.records import SCHEMA_VERSION, TokenRecord
from gemlens.records.edits import AblatedFeature, Ablation, EditedToken
from gemlens.records.labels import label_text
from gemlens.report.label_fields import label_dicts
from gemlens.report.table import plain
from gemlens.report.visible import escape_surrogates, inline, number, token_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["heading", "name_of", "render", "to_dict", "to_json", "to_jsonl"]


def heading(ablation: Ablation) -> str:
    """All the features together, in words."""
    count = len(ablation.features)
    together = f"{count} features together" if count > 1 else "the feature"
    return (
        f"without {together}: KL {ablation.kl:.4f} nats a token, loss {ablation.loss_change:+.4f}; {ablation.positions}"
    )


def name_of(token: EditedToken) -> str:
    """As every view calls a token."""
    as_record = TokenRecord(
        token.position, token.token_id, token.token, token.text, False, token.is_special, l0=None, features=()
    )
    return token_name(as_record)


def to_dict(ablation: Ablation) -> dict[str, Any]:
    """The record as plain values, the derived figures included."""
    derived = {"kl": ablation.kl, "loss_change": ablation.loss_change, "labels": label_dicts(ablation.labels)}
    return {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(ablation) | derived


def to_json(ablation: Ablation) -> str:
    return escape_surrogates(json.dumps(to_dict(ablation), ensure_ascii=False, allow_nan=False, indent=2)) + "\n"


def to_jsonl(ablation: Ablation) -> str:
    """Return one line a feature, each complete in itself."""
    rows = []
    for feature in ablation.features:
        info = ablation.dictionaries[feature.dictionary]
        shared = {"model_id": ablation.model_id, "prompt": ablation.prompt, "positions": ablation.positions}
        named = {"dictionary": f"{info.release}/{info.category}/{info.id}", "site": info.site}
        figures = {name: value for name, value in dataclasses.asdict(feature).items() if name != "dictionary"}
        label = label_text(ablation.labels, feature.dictionary, feature.feature_id)
        figures |= {"label": label} if label else {}
        rows.append(json.dumps(shared | named | figures, ensure_ascii=False, allow_nan=False))
    return "".join(escape_surrogates(row) + "\n" for row in rows)


def render(ablation: Ablation, console: Console) -> None:
    """Print what each feature does alone, what the model expects next with and without them, and its answers."""
    from rich.text import Text

    console.print()
    console.print(Text(plain(ablation.prompt, console), style="bold"), no_wrap=True, overflow="ellipsis")
    for warning in ablation.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning, console)))
    for index, info in enumerate(ablation.dictionaries):
        name = f"{info.release}/{info.category}/{info.id}"
        console.print(Text(plain(f"{info.site}  {name}", console), style="dim"))
        features = [each for each in ablation.features if each.dictionary == index]
        console.print(_features(ablation, features, console))
        # A column of them would take its room from the numbers.
        for each in features:
            if label := label_text(ablation.labels, index, each.feature_id):
                console.print(Text.assemble((f"{each.feature_id}: ", "dim"), plain(label, console)))
    console.print()
    console.print(Text(plain(heading(ablation), console), style="bold"))
    console.print(_next(ablation, console))
    if ablation.answer_before or ablation.answer_after:
        for said, answer in (("with", ablation.answer_before), ("without", ablation.answer_after)):
            console.print(Text.assemble((f"{said:8}", "dim"), plain(answer, console)))


def _features(ablation: Ablation, features: list[AblatedFeature], console: Console) -> Table:
    from rich.text import Text

    table = _table("feature", "max", "tokens", "KL", "KL at the end", "loss")
    table.add_column("strongest on")
    for each in features:
        token = None if each.position is None else ablation.tokens[each.position]
        table.add_row(
            str(each.feature_id),
            number(each.max_activation),
            str(each.active_tokens),
            f"{each.kl:.4f}",
            f"{each.kl_last:.4f}",
            f"{each.loss_change:+.4f}",
            Text("silent", style="dim")
            if token is None
            else Text.assemble(plain(name_of(token), console), (f"  #{token.position}", "dim")),
        )
    return table


def _next(ablation: Ablation, console: Console) -> Table:
    from rich.text import Text

    table = _table("with", "without")
    table.add_column("next token")
    for token in ablation.next_tokens:
        table.add_row(f"{token.before:.4f}", f"{token.after:.4f}", Text(plain(inline(token.text), console)))
    return table


def _table(*headers: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table
