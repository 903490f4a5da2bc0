"""Many features as a folder that is browsed offline: an index with a search, and files of 64 features each.

    index.html             search, sorting, a line for each feature
    pages/00019.html       features 1216 to 1279; the address's #f1234 says which is shown

A page under file:// may load no data, and its policy lets no script of another file in, so each file holds what it
shows: one file a feature would say the same style and script thousands of times, one file for all could not be opened.
Files are written as features come, the index last: it names only what is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from gemlens.errors import InputError
from gemlens.files import check_folder, write
from gemlens.records.feature import FeaturePage
from gemlens.report.feature_html import drawn, facts, frequency, token_name, view
from gemlens.report.page import render

__all__ = ["TOGETHER", "write_features"]

TOGETHER = 64
"""Features of one file."""
_SNIPPET = 60
"""Characters on either side of the strongest token."""


def write_features(pages: Iterable[FeaturePage], feature_ids: Sequence[int], out_dir: str | os.PathLike[str]) -> Path:
    """Write the folder and return its ``index.html``.

    Args:
        pages: of ``feature_ids``, in their order; taken one at a time.
        feature_ids: ascending.

    Raises:
        InputError: no features, or not ascending.
        OutputError: the folder cannot be written.
    """
    if not feature_ids or any(b <= a for a, b in pairwise(feature_ids)):
        raise InputError("features of a folder are given in ascending order, at least one")
    folder = check_folder(out_dir)
    check_folder(folder / "pages")
    there = set(feature_ids)
    firsts = [next(group) for _, group in groupby(feature_ids, key=lambda each: each // TOGETHER)]
    lasts = [list(group)[-1] for _, group in groupby(feature_ids, key=lambda each: each // TOGETHER)]
    rows: list[list[Any]] = []
    one: FeaturePage | None = None
    for index, (shard, group) in enumerate(groupby(pages, key=lambda page: page.feature_id // TOGETHER)):
        views = []
        for page in group:
            one = page
            views.append(view(page, lambda feature: _link(feature) if feature in there else None))
            rows.append(_row(page))
        assert one is not None
        html = render(
            "feature",
            facts=facts(one),
            views=views,
            back="../index.html",
            title=f"Features {views[0]['id']} to {views[-1]['id']}",
            data={
                "before": _link(lasts[index - 1]) if index else None,
                "after": _link(firsts[index + 1]) if index + 1 < len(firsts) else None,
            },
        )
        write(html, folder / "pages" / _file(shard * TOGETHER))
    assert one is not None
    path = folder / "index.html"
    write(_index(one, rows, firsts, lasts), path)
    return path


def _index(one: FeaturePage, rows: list[list[Any]], firsts: Sequence[int], lasts: Sequence[int]) -> str:
    info = one.dictionary
    return render(
        "features",
        facts=facts(one),
        info=info,
        path="/".join(filter(None, [info.release, info.category, info.id])),
        count=len(rows),
        labelled=sum(bool(row[1]) for row in rows),
        silent=sum(row[6] == 0 for row in rows),
        warnings=one.warnings,
        files=[
            {"href": f"pages/{_file(first)}", "name": f"{first} to {last}" if last > first else str(first)}
            for first, last in zip(firsts, lasts, strict=True)
        ],
        data={"together": TOGETHER, "rows": rows},
    )


def _row(page: FeaturePage) -> list[Any]:
    """Id, label, promoted tokens, text around the strongest in three parts, maximum, share of tokens, that in words."""
    best = page.examples[0] if page.examples else None
    before = after = peak = ""
    if best is not None:
        before = _text(best.tokens[: best.peak])[-_SNIPPET:]
        peak = _text(best.tokens[best.peak : best.peak + 1]) or best.tokens[best.peak].token
        after = _text(best.tokens[best.peak + 1 :])[:_SNIPPET]
    return [
        page.feature_id,
        page.label.text if page.label else "",
        [token_name(each) for each in page.promoted[:5]],
        before,
        peak,
        after,
        float(f"{page.max_activation:.4g}"),
        float(f"{page.frequency or 0:.4g}"),
        frequency(page).partition(" (")[0],
    ]


def _text(tokens: Sequence[Any]) -> str:
    return "".join(part for _, part in drawn(tokens))


def _link(feature: int) -> str:
    return f"{_file(feature)}#f{feature}"


def _file(feature: int) -> str:
    return f"{feature // TOGETHER:05}.html"
