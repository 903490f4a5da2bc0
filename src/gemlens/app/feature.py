"""``gemlens feature``: what a feature means, from the evidence of its dictionary; no model is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.measuring import progress
from gemlens.app.options import (
    CategoryOption,
    OutDirOption,
    ReleaseOption,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.paths import local_folder

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.vocabulary import Vocabulary
    from gemlens.records.feature import FeatureLabel, FeaturePage
    from gemlens.scope.evidence import Evidence

__all__ = ["feature"]

_KINDS = ("html", "json")
_PRINTED = 50
"""Features that are listed in the terminal."""
_BY_RANGES = 40
"""Features for which a few requests each are cheaper than the whole file."""
_PER_LEVEL, _PER_LEVEL_OF_MANY = 8, 5


def feature(
    feature_ids: Annotated[
        list[int] | None,
        typer.Argument(help="Numbers of features; several are written as a folder.", metavar="[FEATURE]..."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All features of the dictionary, as a folder.")] = False,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: Annotated[
        str | None,
        typer.Option(
            "--sae-id", help="Dictionary. An id with a / carries its category.  [default: as in analyze]", metavar="ID"
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub repository.", metavar="NAME")
    ] = None,
    model_id: Annotated[
        str | None,
        typer.Option(
            help="Model whose vocabulary says what tokens are; it is not loaded.  [default: the evidence's]",
            metavar="MODEL",
        ),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            help="What to write: html or json; repeat it.  [default: nothing of one, html of several]",
            metavar="KIND",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help=f"Examples of each level of activation.  [default: {_PER_LEVEL}, of several {_PER_LEVEL_OF_MANY}]",
            metavar="INT",
        ),
    ] = None,
    out_dir: OutDirOption = Path("outputs"),
) -> None:
    """Show what a feature fires on and what it writes: one in the terminal, several as a folder to browse offline.

    The evidence lies beside the dictionary (Gemma Scope 2's have it; `gemlens collect features` makes it). Of a file on
    the hub only the rows of these features are fetched.
    """
    ids = sorted(set(feature_ids or []))
    kinds = list(dict.fromkeys(export or []))
    _check(ids, every, kinds, examples)
    release, (name,) = default_dictionary("", sae_release, [sae_id] if sae_id is not None else None)
    check_sources(model_id or STARTER_NAME, release, sae_category, [name])
    if sae_id is None and release != STARTER_NAME and local_folder(release):
        name = ""  # the one that it holds
    console = notes()
    many = every or len(ids) > 1
    from gemlens.scope.evidence import load_evidence

    with busy(console, f"Looking up {name or release}"):
        evidence = load_evidence(release, name, category=sae_category.strip("/"), revision=revision)
    ids = list(range(evidence.examples.width)) if every else ids
    if not evidence.is_here and len(ids) > _BY_RANGES:
        tell(console, f"fetching {evidence.examples.parts.size / 1e6:,.0f} MB once: {evidence.examples.name}")
        evidence = load_evidence(release, name, category=sae_category.strip("/"), revision=revision, whole=True)
    evidence.examples.check(ids)
    vocabulary = _vocabulary(console, model_id)
    per_level = examples or (_PER_LEVEL_OF_MANY if many else _PER_LEVEL)
    if many:
        _many(console, evidence, ids, vocabulary, per_level, kinds or ["html"], out_dir.expanduser())
    else:
        _one(console, evidence, ids[0], vocabulary, per_level, kinds, out_dir.expanduser())


def _check(ids: Sequence[int], every: bool, kinds: Sequence[str], examples: int | None) -> None:
    if every and ids:
        raise InputError("--all takes no numbers of features; leave out one of them")
    if not every and not ids:
        raise InputError("no feature is named; give numbers, as in gemlens feature 1234, or --all")
    if ids and ids[0] < 0:
        raise InputError(f"feature {ids[0]}: numbers start at 0")
    if strange := [kind for kind in kinds if kind not in _KINDS]:
        raise InputError(f"--export {strange[0]!r}: there is {' and '.join(_KINDS)}")
    if examples is not None and not 1 <= examples <= 100:
        raise InputError(f"--examples {examples}: take a number from 1 to 100")


def _vocabulary(console: Console, model_id: str | None) -> Vocabulary | None:
    if model_id is None:
        return None
    from gemlens.lm.vocabulary import load_vocabulary

    with busy(console, f"Reading the vocabulary of {model_id}"):
        return load_vocabulary(model_id)


def _labels(evidence: Evidence, ids: Sequence[int]) -> dict[int, FeatureLabel]:
    """What the features are called."""
    from gemlens.records.feature import FeatureLabel
    from gemlens.scope.labels import labels_for

    found = labels_for(evidence.info, ids).values()
    return {label.feature: FeatureLabel(label.shown, label.source, label.confidence) for label in found}


def _pages(
    evidence: Evidence, ids: Sequence[int], vocabulary: Vocabulary | None, per_level: int
) -> Iterator[FeaturePage]:
    from gemlens.study.feature import feature_pages

    return feature_pages(evidence, ids, vocabulary=vocabulary, labels=_labels(evidence, ids), per_level=per_level)


def _one(
    console: Console,
    evidence: Evidence,
    feature_id: int,
    vocabulary: Vocabulary | None,
    per_level: int,
    kinds: Sequence[str],
    out_dir: Path,
) -> None:
    from gemlens.files import write
    from gemlens.report.feature_html import feature_to_html
    from gemlens.report.feature_json import feature_to_json
    from gemlens.report.feature_table import render_feature

    paths = {kind: out_dir / f"feature_{feature_id}.{kind}" for kind in kinds}
    with ExitStack() as stack:
        if kinds:
            stack.enter_context(prepared("--out-dir", out_dir, [path.name for path in paths.values()]))
        with busy(console, f"Reading the evidence of feature {feature_id}"):
            (page,) = _pages(evidence, [feature_id], vocabulary, per_level)
        # Before the table: whoever pipes that into `head` wants the files none the less.
        for kind, path in paths.items():
            write(feature_to_html(page) if kind == "html" else feature_to_json(page), path)
    with results() as table:
        render_feature(page, table)
    for path in paths.values():
        tell(console, f"wrote {path}")


def _many(
    console: Console,
    evidence: Evidence,
    ids: Sequence[int],
    vocabulary: Vocabulary | None,
    per_level: int,
    kinds: Sequence[str],
    out_dir: Path,
) -> None:
    from gemlens.files import whole
    from gemlens.report.feature_folder import write_features
    from gemlens.report.feature_json import feature_to_jsonl
    from gemlens.report.feature_table import render_features

    info = evidence.info
    folder = out_dir / "features" / ("_".join(filter(None, [info.category.replace("/", "_"), info.id])) or "dictionary")
    rows = folder / "features.jsonl"
    kept: list[FeaturePage] = []
    with ExitStack() as stack:
        stack.enter_context(prepared("--out-dir", folder, ["index.html", rows.name]))
        show = stack.enter_context(progress(console))
        lines = stack.enter_context(whole(rows)) if "json" in kinds else None

        def taken() -> Iterator[FeaturePage]:
            for done, page in enumerate(_pages(evidence, ids, vocabulary, per_level)):
                show("Reading evidence", done, len(ids))
                if done < _PRINTED:
                    kept.append(page)
                if lines is not None:
                    lines.write(feature_to_jsonl(page).encode("utf-8"))
                yield page

        if "html" in kinds:
            write_features(taken(), ids, folder)
        else:
            for _ in taken():
                pass
    with results() as table:
        render_features(kept, table)
    if len(ids) > _PRINTED:
        tell(console, f"and {len(ids) - _PRINTED:,} more")
    for kind, path in (("json", rows), ("html", folder / "index.html")):
        if kind in kinds:
            tell(console, f"wrote {path}")
