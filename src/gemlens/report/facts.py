"""What made a record, for the footer of its page."""

from __future__ import annotations

from collections.abc import Sequence

from gemlens.records import DictionaryInfo, Provenance

__all__ = ["facts_of"]


def facts_of(model_id: str, made: Provenance, dictionaries: Sequence[DictionaryInfo]) -> list[tuple[str, str]]:
    versions = f"gemlens {made.gemlens_version}, torch {made.torch_version}, transformers {made.transformers_version}"
    named = [("/".join(filter(None, [each.release, each.category, each.id])), each.revision) for each in dictionaries]
    return [
        ("Model", _at(model_id, made.model_revision)),
        *(("Dictionary", _at(*each)) for each in dict.fromkeys(named)),
        ("Numbers", f"{made.dtype} on {made.device}"),
        ("Made with", versions),
        ("Created", made.created),
    ]


def _at(name: str, revision: str | None) -> str:
    return f"{name} @ {revision}" if revision else name
