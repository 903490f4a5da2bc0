"""``feature_labels.json`` and ``metadata.json`` of one dictionary, in ``{release}/{id with / as _}/``.

    {"sae_info": {release, sae_id, neuronpedia_id, num_features, downloaded_at},
     "features": {"0": {description, top_positive_tokens, top_negative_tokens, max_activation, has_explanations}, …},
     "stats": {total_features, with_descriptions, successful, failed}}

One description a feature: the one that views show. ``metadata.json`` has ``sae_info`` and ``stats`` as one object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemlens.errors import InputError, NotFoundError
from gemlens.files import check_folder, write
from gemlens.records.labels import FeatureFacts, Label, best_label
from gemlens.scope import label_progress as progress
from gemlens.scope.label_names import Named, by_neuronpedia_id, named
from gemlens.scope.labels import LabelStore, now

__all__ = ["FILE", "folder_of", "read_layout", "write_layout"]

FILE, _METADATA = "feature_labels.json", "metadata.json"


def folder_of(dictionary: Named) -> Path:
    """``gemma-scope-2b-pt-res-canonical/layer_16_width_16k_canonical``."""
    release, name = (part.strip("/").replace("/", "_") for part in (dictionary.release, dictionary.id))
    return Path(release) / (name or "dictionary")


def write_layout(store: LabelStore, dictionary: Named, root: Path, *, failed: int = 0) -> Path:
    """Write both files below ``root`` and return the path of the labels.

    Args:
        failed: features that could not be asked for.

    Raises:
        NotFoundError: nothing is known of the dictionary.
        OutputError: they cannot be written.
    """
    labels, facts = store.of(dictionary.key), progress.facts(store, dictionary.key)
    if not labels and not facts:
        raise NotFoundError(f"no label of {dictionary.key} is stored; download some: gemlens labels download")
    width = dictionary.width or max([*labels, *facts]) + 1
    features = {str(feature): _feature(labels.get(feature, []), facts.get(feature)) for feature in range(width)}
    described = sum(each["has_explanations"] for each in features.values())
    info = {
        "release": dictionary.release,
        "sae_id": dictionary.id,
        "neuronpedia_id": dictionary.neuronpedia,
        "num_features": width,
        "downloaded_at": store.downloaded(dictionary.key) or now(),
    }
    stats = {
        "total_features": width,
        "with_descriptions": described,
        "successful": width - failed,
        "failed": failed,
    }
    folder = check_folder(root / folder_of(dictionary))
    whole = {"sae_info": info, "features": features, "stats": stats}
    write(json.dumps(whole, ensure_ascii=False, indent=2) + "\n", folder / FILE)
    write(json.dumps(info | stats, ensure_ascii=False, indent=2) + "\n", folder / _METADATA)
    return folder / FILE


def read_layout(path: Path, dictionary: Named | None) -> tuple[Named, Iterator[Label], dict[int, FeatureFacts]]:
    """Dictionary, labels and facts of a ``feature_labels.json``, or of a folder that holds one.

    Raises:
        NotFoundError: there is none.
        InputError: it is no such file, or of another dictionary.
    """
    path = path / FILE if path.is_dir() else path
    try:
        said = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_doubles)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; name a {FILE}, or its folder") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON, or cannot be read ({str(error)[:100]}); download it again") from error
    features = said.get("features") if isinstance(said, dict) else None
    if not isinstance(features, dict):
        raise InputError(f"{path} has no 'features'; expected what gemlens labels export writes")
    info = said.get("sae_info")
    owner = _owner(info if isinstance(info, dict) else {}, dictionary, path)
    rows = {_index(index, path): row for index, row in features.items() if isinstance(row, dict)}
    created = str(info.get("downloaded_at", "")) if isinstance(info, dict) else ""
    source = "neuronpedia" if owner.neuronpedia else FILE
    labels = (
        Label(owner.key, feature, row["description"].strip(), source, created=created)
        for feature, row in rows.items()
        if isinstance(row.get("description"), str) and row["description"].strip() and row.get("has_explanations", True)
    )
    return owner, labels, {feature: _facts(row) for feature, row in rows.items()}


def _feature(labels: list[Label], facts: FeatureFacts | None) -> dict[str, Any]:
    best, known = best_label(labels), facts or FeatureFacts()
    return {
        "description": best.shown if best else "",
        "top_positive_tokens": list(known.top_positive_tokens),
        "top_negative_tokens": list(known.top_negative_tokens),
        "max_activation": known.max_activation,
        "has_explanations": best is not None,
    }


def _owner(info: dict[str, Any], dictionary: Named | None, path: Path) -> Named:
    """By release and id as it names them, else by Neuronpedia's id; what the caller says must agree."""
    said: Named | None = None
    try:
        said = named(str(info["release"]), str(info["sae_id"]))
    except (KeyError, NotFoundError, InputError):
        said = by_neuronpedia_id(str(info.get("neuronpedia_id")))
    if dictionary is None and said is None:
        raise InputError(f"{path} says no dictionary that gemlens knows; name it with --sae-release and --sae-id")
    if dictionary is not None and said is not None and said.key != dictionary.key:
        raise InputError(f"{path} is of {said.key}, not of {dictionary.key}; leave out --sae-release and --sae-id")
    owner = dictionary or said
    assert owner is not None
    return owner


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's JSON would keep the last of two features of one number, without a word."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{name[:40]!r} is there twice; download the file again")
        found[name] = value
    return found


def _index(text: str, path: Path) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or text != str(int(text)):
        raise InputError(f"{path}: {text[:20]!r} is no feature; they are numbered from 0")
    return int(text)


def _facts(row: dict[str, Any]) -> FeatureFacts:
    def tokens(name: str) -> tuple[str, ...]:
        listed = row.get(name)
        return tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, list) else ()

    largest = row.get("max_activation")
    if isinstance(largest, bool) or not isinstance(largest, int | float) or not math.isfinite(largest):
        largest = None
    return FeatureFacts(tokens("top_positive_tokens"), tokens("top_negative_tokens"), largest)
