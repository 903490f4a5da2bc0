"""Folders of evidence: what their files are called, what made them, and whether a collection is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemlens import __version__
from gemlens.data.corpus import Text, text_identity
from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.scope.examples import EXAMPLES
from gemlens.scope.sae import SAE
from gemlens.scope.statistics import STATISTICS

__all__ = ["TOKENS", "about_of", "files_of", "is_complete", "metadata_of", "paths_of"]

TOKENS = "tokens.safetensors"
"""The sequences that several dictionaries share."""


def paths_of(dictionaries: Sequence[SAE]) -> list[str]:
    """Folders inside the one that is written, as the release has them; of a lone dictionary perhaps that one itself."""
    paths = ["/".join(filter(None, [each.info.category, each.info.id])) for each in dictionaries]
    if not paths:
        raise InputError("no dictionary was given; name some, as resid_post/layer_12_width_4k_l0_medium")
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise InputError(f"two dictionaries are called {twice}; collect them into two folders, one after the other")
    return paths


def files_of(folder: Path, paths: Sequence[str]) -> list[Path]:
    """Every file of evidence on the dictionaries ``paths``."""
    files = [folder / path / name for path in paths for name in (EXAMPLES, STATISTICS)]
    return files + ([folder / TOKENS] if len(paths) > 1 else [])


def about_of(model: Model, texts: Sequence[Text], options: dict[str, Any]) -> dict[str, Any]:
    """What makes the bytes what they are, but for the dictionary: JSON for the metadata of every file."""
    found = [text_identity(text) for text in texts]
    return {
        "version": __version__,
        "model_id": model.name,
        "model_revision": model.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": hashlib.sha256(model.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "texts": [text["name"] for text in found],
        "text_hashes": [text["sha256"] for text in found],
        **options,
    }


def is_complete(files: Sequence[Path], about: Mapping[str, Any]) -> bool:
    """Whether all are there, made as ``about`` says.

    Raises:
        InputError: only some are there, or they are of something else.
    """
    there = [file for file in files if file.exists()]
    for file in there:
        said, _ = metadata_of(file)
        if any(said.get(name) != value for name, value in json.loads(json.dumps(about)).items()):
            raise InputError(f"{file} is of another collection; name another folder, or delete it to begin anew")
    if there and len(there) < len(files):
        missing = next(file for file in files if file not in there)
        raise InputError(f"{missing} is missing beside {there[0]}; name another folder, or delete what is there")
    return bool(there)


def metadata_of(file: Path) -> tuple[dict[str, Any], int]:
    """What made a file of evidence, {} where that is not said; and how many sequences it holds."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            said = json.loads((opened.metadata() or {}).get("gemlens", "{}"))
            sequences = opened.get_slice("tokens").get_shape()[0] if "tokens" in opened.keys() else 0  # noqa: SIM118
            return said, sequences
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read ({reason}); delete it to collect anew") from error
