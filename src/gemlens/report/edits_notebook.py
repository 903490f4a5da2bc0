"""A ``Steering`` and an ``Ablation`` in a notebook: a fragment of HTML without script or style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemlens.records.edits import Ablation, Steering
from gemlens.records.labels import label_text
from gemlens.report.ablation import heading, name_of
from gemlens.report.steering import labels_of, subject
from gemlens.report.visible import inline, number, one_line

__all__ = ["ablation_view", "steering_view"]

_CELL = "padding:2px 12px 2px 0;text-align:{};vertical-align:top"


def steering_view(steering: Steering) -> str:
    """Return the answers side by side, with perplexity and KL."""
    rows = [(f"{d.strength:g}", number(d.perplexity), f"{d.kl:.3f}", d.text) for d in steering.doses]
    named = "".join(f" · {feature}: {label}" for feature, label in labels_of(steering))
    head = f"{steering.prompt} · {subject(steering)}{named} · {steering.mode}, strength in {steering.unit}"
    return _view(head, steering.warnings, [(("strength", "perplexity", "KL", "the model adds"), rows)])


def ablation_view(ablation: Ablation) -> str:
    """Return what each feature does alone, and what is expected next with and without them."""
    features = [
        (
            str(each.feature_id),
            number(each.max_activation),
            f"{each.kl:.4f}",
            f"{each.kl_last:.4f}",
            "silent" if each.position is None else name_of(ablation.tokens[each.position]),
            *([label_text(ablation.labels, each.dictionary, each.feature_id)] if ablation.labels else []),
        )
        for each in ablation.features
    ]
    following = [(f"{t.before:.4f}", f"{t.after:.4f}", inline(t.text)) for t in ablation.next_tokens]
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (("feature", "max", "KL", "KL at the end", "strongest on", *(["label"] if ablation.labels else [])), features),
        (("with", "without", "next token"), following),
    ]
    return _view(f"{ablation.prompt} · {heading(ablation)}", ablation.warnings, tables)


def _view(head: str, warnings: Iterable[str], tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
    from markupsafe import Markup

    parts: list[str] = [Markup("<b>{}</b>").format(one_line(head))]
    parts += [Markup('<div style="margin-top:4px">⚠ {}</div>').format(one_line(text)) for text in warnings]
    parts += [_table(headers, rows) for headers, rows in tables]
    html = Markup('<div style="font-size:14px;line-height:1.5;max-width:70em">{}</div>').format(Markup("").join(parts))
    return html.encode("utf-8", "replace").decode()


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from markupsafe import Markup

    def row(tag: str, cells: Sequence[str]) -> str:
        drawn = [
            Markup("<{} style='{}'>{}</{}>").format(
                Markup(tag), _CELL.format("left" if index == len(cells) - 1 else "right"), one_line(cell), Markup(tag)
            )
            for index, cell in enumerate(cells)
        ]
        return Markup("<tr>{}</tr>").format(Markup("").join(drawn))

    body = Markup("").join([row("th", headers), *(row("td", cells) for cells in rows)])
    return Markup('<table style="border-collapse:collapse;margin-top:8px">{}</table>').format(body)
