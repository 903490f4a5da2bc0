"""Write an analysis as a report of some kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from gemlens.errors import InputError
from gemlens.files import check_folder, write
from gemlens.records import Analysis
from gemlens.records.feature import FeaturePage

__all__ = ["KINDS", "REPORT", "export"]

REPORT = "gemma_scope_2_report"

Kind = Literal["html", "json", "jsonl", "parquet"]
KINDS: tuple[Kind, ...] = ("html", "json", "jsonl", "parquet")


def export(
    analysis: Analysis,
    kind: Kind,
    out_dir: str | os.PathLike[str],
    *,
    name: str = REPORT,
    evidence: Mapping[int, Mapping[int, FeaturePage]] | None = None,
) -> Path:
    """Write ``<name>.<kind>`` into ``out_dir`` (created if need be) and return its path.

    Args:
        evidence: for HTML, as for ``to_html``.
    """
    if kind not in KINDS:
        raise InputError(f"no export named {kind!r}; there is {', '.join(KINDS)}")
    path = check_folder(out_dir) / f"{name}.{kind}"
    if kind == "parquet":
        from gemlens.report.parquet import parquet_file

        with parquet_file(path) as add:
            add(analysis, 0)
    else:
        write(_render(analysis, kind, evidence), path)
    return path


def _render(analysis: Analysis, kind: str, evidence: Mapping[int, Mapping[int, FeaturePage]] | None) -> str:
    if kind == "html":
        from gemlens.report.html import to_html

        return to_html(analysis, evidence=evidence)
    from gemlens.report.json import to_json, to_jsonl

    return to_json(analysis) if kind == "json" else to_jsonl(analysis)
