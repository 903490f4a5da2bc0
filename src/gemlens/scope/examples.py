"""``examples.safetensors``: the strongest activations of every feature, and how often it fires.

Gemma Scope 2 ships one beside each of its dictionaries, gemlens writes the same (``gemlens collect features``):

    activations        [F, k]      strongest first; 0 in an empty slot
    positions          [F, k]      index into the row of tokens
    seq_ids            [F, k]      row of tokens; -1 in an empty slot
    tokens             [n_seq, L]  BOS first, padding (0) last
    feature_frequencies [F]        share of tokens on which it fires
    top_tokens, bottom_tokens [F, 10] · top_logits, bottom_logits [F, 10]     what it promotes and suppresses; optional
    logit_effects      [F, k]      optional: nobody has written down what it is; kept, not interpreted

Any dtype of integers and floating-point numbers. Dictionaries that share their sequences have them in one file:
``tokens`` is missing then, and the metadata's ``tokens`` names that file, relative to this one. The metadata's
``gemlens`` is JSON on what made the file; Google's have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemlens.errors import InputError, NotFoundError, WeightsError
from gemlens.scope.slices import SliceFile, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXAMPLES", "Examples", "FeatureExamples", "write_examples"]

EXAMPLES = "examples.safetensors"
_BY_SLOT = ("activations", "positions", "seq_ids")
_LOGITS = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")


def write_examples(
    path: Path, tensors: dict[str, Tensor], *, about: Mapping[str, Any], tokens_file: str | None = None
) -> None:
    """Write a file of examples, whole or not at all; the same bytes for the same arguments.

    Args:
        path: ``examples.safetensors`` in the dictionary's folder, or any other.
        tensors: those of the module's docstring; ``tokens`` too unless ``tokens_file`` has them.
        about: JSON on what made it: version, model_id, dictionary, tokens, texts, ...
        tokens_file: relative path of the file that holds ``tokens``: ``../../tokens.safetensors``.

    Raises:
        InputError: a tensor is missing or their shapes contradict each other.
        OutputError: the file cannot be written.
    """
    needed = {*_BY_SLOT, "feature_frequencies"} | (set() if tokens_file else {"tokens"})
    if missing := needed - set(tensors):
        raise InputError(f"examples need {', '.join(sorted(missing))}")
    if tokens_file is not None and (PurePosixPath(tokens_file).is_absolute() or "tokens" in tensors):
        raise InputError("tokens_file is a relative path, instead of tokens among the tensors")
    width, k = tensors["activations"].shape
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((*_BY_SLOT, "logit_effects"), (width, k))
    shapes["feature_frequencies"] = (width,)
    shapes |= {name: (width, tensors[name].shape[-1]) for name in _LOGITS if name in tensors}
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise InputError(f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}")
    metadata = {"gemlens": json.dumps(dict(about), sort_keys=True, ensure_ascii=True)}
    write_safetensors(path, tensors, metadata | ({"tokens": tokens_file} if tokens_file else {}))


@dataclass(frozen=True)
class FeatureExamples:
    """What the file says of one feature; slots that hold nothing are left out."""

    activations: NDArray[np.float64]
    """[n], > 0, strongest first"""
    positions: NDArray[np.int64]
    """[n]"""
    seq_ids: NDArray[np.int64]
    """[n]"""
    frequency: float | None
    logit_effects: NDArray[np.float64] | None
    """[n], as they stand in the file; nobody has written down what they are."""
    top: tuple[tuple[int, float], ...]
    """Token ids and logits, largest first."""
    bottom: tuple[tuple[int, float], ...]


class Examples:
    """A file of examples, read a feature at a time.

    Args:
        file: ``examples.safetensors``.
        tokens: the file that holds ``tokens``; the same one, or that which its metadata names.
        width: of the dictionary, where it is known.

    Raises:
        WeightsError: a tensor is missing, or of another width or shape than the others.
    """

    def __init__(self, file: SliceFile, tokens: SliceFile, *, width: int | None = None) -> None:
        self._file, self._tokens, self.name = file, tokens, file.parts.name
        self.parts = file.parts
        file.require([*_BY_SLOT, "feature_frequencies"])
        tokens.require(["tokens"])
        shape = file.shape("activations")
        self.width, self.slots = shape if len(shape) == 2 else (0, 0)
        if len(tokens.shape("tokens")) != 2 or len(shape) != 2:
            raise WeightsError(f"{self.name}: activations and tokens are no matrices; it is no file of examples")
        self.sequences, self.length = tokens.shape("tokens")
        if width is not None and self.width != width:
            raise WeightsError(
                f"{self.name} has examples of {self.width} features, the dictionary beside it has {width}; "
                "it belongs to another one: download both again"
            )
        for name in (*_BY_SLOT, "logit_effects", "feature_frequencies", *_LOGITS):
            if name not in file:
                continue
            theirs = file.shape(name)
            right = theirs == shape if name in (*_BY_SLOT, "logit_effects") else theirs[0] == self.width
            if not right or len(theirs) != (1 if name == "feature_frequencies" else 2):
                raise WeightsError(f"{self.name}: {name} has shape {list(theirs)}, activations {list(shape)}")
        self.about = _about(file)

    def feature(self, index: int) -> FeatureExamples:
        """One feature, in one read.

        Raises:
            NotFoundError: the dictionary has fewer features.
            WeightsError: an activation is not finite, or a position or sequence is not there.
        """
        self.check([index])
        names = [name for name in (*_BY_SLOT, "feature_frequencies", "logit_effects", *_LOGITS) if name in self._file]
        found = dict(zip(names, self._file.rows([(name, [index]) for name in names]), strict=True))
        activations, positions, seq_ids = (found[name][0] for name in _BY_SLOT)
        # Strongest first is what the format says; sorted again, since every view relies on it.
        order = np.argsort(-activations, kind="stable")
        held = order[(activations[order] > 0) & (seq_ids[order] != -1)]
        frequency = float(found["feature_frequencies"][0])
        if not np.isfinite(activations).all() or not np.isfinite(frequency):
            raise self._wrong(index, "an activation or frequency that is not finite")
        out = FeatureExamples(
            activations[held].astype(np.float64),
            positions[held],
            seq_ids[held],
            frequency,
            found["logit_effects"][0][held].astype(np.float64) if "logit_effects" in found else None,
            _pairs(found, "top"),
            _pairs(found, "bottom"),
        )
        if len(held) and not (out.seq_ids.min() >= 0 and out.seq_ids.max() < self.sequences):
            raise self._wrong(index, f"a sequence out of range: there are {self.sequences}")
        if len(held) and not (out.positions.min() >= 0 and out.positions.max() < self.length):
            raise self._wrong(index, f"a position out of range: sequences have {self.length} tokens")
        return out

    def top_tokens(self, features: Sequence[int]) -> dict[int, list[int]]:
        """Ids of the tokens that each feature promotes, largest logit first; of none where the file has none."""
        self.check(features)
        if "top_tokens" not in self._file or not features:
            return {}
        (rows,) = self._file.rows([("top_tokens", features)])
        return dict(zip(features, rows.tolist(), strict=True))

    def check(self, features: Sequence[int]) -> None:
        """Raise NotFoundError for a feature that the dictionary does not have."""
        for index in features:
            if not 0 <= index < self.width:
                raise NotFoundError(f"there is no feature {index} in {self.name}: it has 0 to {self.width - 1}")

    def token_rows(self, sequences: Sequence[int]) -> dict[int, NDArray[np.int64]]:
        """Sequence -> its token ids, in one read."""
        wanted = sorted(set(sequences))
        (rows,) = self._tokens.rows([("tokens", wanted)])
        if rows.size and rows.min() < 0:
            raise WeightsError(f"{self.name}: its sequences hold a token id below 0; download it again")
        return dict(zip(wanted, rows, strict=True))

    def _wrong(self, index: int, what: str) -> WeightsError:
        return WeightsError(f"{self.name}: feature {index} has {what}; download it again")


def _pairs(found: Mapping[str, NDArray[Any]], end: str) -> tuple[tuple[int, float], ...]:
    """Token ids of one end with their logits; without them nothing says how far they are promoted."""
    if f"{end}_tokens" not in found or f"{end}_logits" not in found:
        return ()
    ids, logits = found[f"{end}_tokens"][0].tolist(), found[f"{end}_logits"][0].tolist()
    return tuple((token, logit) for token, logit in zip(ids, logits, strict=False) if token >= 0 and isfinite(logit))


def _about(file: SliceFile) -> dict[str, Any]:
    """The metadata's ``gemlens``; empty for files of others."""
    try:
        about = json.loads(file.metadata.get("gemlens", "{}"))
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
