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
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gemlens.errors import InputError
from gemlens.scope.slices import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXAMPLES", "write_examples"]

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
