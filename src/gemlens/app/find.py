"""``gemlens find``: which features a phrase leads to."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, results, tell
from gemlens.app.label_evidence import frequencies_of
from gemlens.app.load import load
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    IdsOption,
    ModelOption,
    ReleaseOption,
    check_sources,
    default_dictionary,
)
from gemlens.errors import InputError

if TYPE_CHECKING:
    from gemlens.records import DictionaryInfo
    from gemlens.records.labels import Label, PhraseFeature

__all__ = ["find"]

_HITS = 100


def find(
    phrase: Annotated[str, typer.Argument(help="A few words, or a sentence.", metavar="PHRASE")],
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: ReleaseOption = None,
    sae_category: CategoryOption = "resid_post",
    sae_id: IdsOption = None,
    limit: Annotated[int, typer.Option(help="Features to list of each dictionary.", metavar="INT")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """List features that fire on a phrase more than they do elsewhere, and those whose label answers to it."""
    if not phrase.strip():
        raise InputError("the phrase is empty; give some words, such as 'time travel'")
    if limit < 1:
        raise InputError(f"--limit {limit}: 1 or more")
    release, ids = default_dictionary(model_id, sae_release, sae_id)
    check_sources(model_id, release, sae_category, ids)
    console = notes()
    dictionaries, model, warnings = load(
        console, model_id, release, sae_category, ids, device=device.value, dtype=dtype.value
    )
    from gemlens.report.labels import render_phrase
    from gemlens.study.analyze import analyze
    from gemlens.study.phrase import phrase_features

    with busy(console, "Reading the phrase"):
        analysis = analyze(model, dictionaries, phrase, chat=False, max_new_tokens=0)
    rates = [frequencies_of(info) for info in analysis.dictionaries]
    for warning in warnings:
        tell(console, f"warning: {warning}")
    for info, known in zip(analysis.dictionaries, rates, strict=True):
        if known is None:
            tell(
                console,
                f"warning: nothing on this machine says how often features of {info.id} fire; their mean is taken. "
                "gemlens collect features counts them",
            )
    labels, hits = _labels(phrase, analysis.dictionaries)
    found = phrase_features(analysis, rates, labels, hits, limit=limit)
    if as_json:
        _print_json(found)
        return
    with results() as out:
        render_phrase(found, out)


def _labels(
    phrase: str, dictionaries: tuple[DictionaryInfo, ...]
) -> tuple[dict[str, dict[int, list[Label]]], list[Label]]:
    """All labels of the dictionaries, and those that answer to the phrase: by all its words, else by most."""
    from gemlens.scope.label_names import key_of
    from gemlens.scope.label_schema import is_store
    from gemlens.scope.labels import LabelStore, label_file

    if not is_store(label_file()):
        return {}, []
    keys = [key_of(info) for info in dictionaries]
    with LabelStore() as store:
        try:
            hits = store.search(phrase, dictionaries=keys, limit=_HITS)
        except InputError:  # no word in it, as in "…"
            hits = []
        return {key: store.of(key) for key in keys}, hits


def _print_json(found: list[PhraseFeature]) -> None:
    with results():
        lines = ",\n".join(json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in found)
        sys.stdout.write(f"[\n{lines}\n]\n" if lines else "[]\n")
        sys.stdout.flush()
