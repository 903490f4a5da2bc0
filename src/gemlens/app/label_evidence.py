"""The passages that a label is written or scored by: a dictionary's evidence, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemlens.errors import GemlensError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemlens.records import DictionaryInfo
    from gemlens.scope.label_names import Named
    from gemlens.study.contexts import Contexts

__all__ = ["features_of", "frequencies_of", "open_contexts"]


def open_contexts(dictionary: Named, model_id: str | None) -> Contexts:
    """Of a dictionary with evidence beside it; the one place where labels meet evidence.

    Args:
        model_id: model whose vocabulary reads the evidence; the one that made it unless given.

    Raises:
        NotFoundError: it has no evidence.
        InputError: nothing says which model made it.
        MismatchError, WeightsError, NetworkError, AccessError: it cannot be read.
    """
    from gemlens.lm.vocabulary import load_vocabulary
    from gemlens.scope.evidence import load_evidence
    from gemlens.study.contexts import FileContexts

    evidence = load_evidence(dictionary.repo or dictionary.release, dictionary.path or dictionary.id)
    name = model_id or evidence.model_id
    if name is None:
        raise InputError(f"the evidence of {dictionary.key} does not say which model made it; name it with --model-id")
    return FileContexts(evidence.examples, load_vocabulary(name))


def frequencies_of(info: DictionaryInfo) -> NDArray[np.float64] | None:
    """[width], the share of tokens on which each feature fires: of evidence on this machine, else of training."""
    import numpy as np

    from gemlens.scope.base_rates import base_rates

    try:
        from gemlens.scope.evidence import evidence_at_hand
        from gemlens.scope.slices import SliceFile

        if evidence := evidence_at_hand(info):
            return np.asarray(SliceFile(evidence.examples.parts).all("feature_frequencies"), dtype=np.float64)
    except (GemlensError, ImportError):
        pass
    path = info.path if info.path is not None else f"{info.category}/{info.id}"
    return base_rates(info.release, path, info.width)


def features_of(text: str | None, width: int) -> list[int]:
    """``3,10-20`` -> the features; all of them unless given.

    Raises:
        InputError: not written so, or beyond the width.
    """
    if text is None:
        return list(range(width))
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.strip().isdecimal()):
            raise InputError(f"--features {text[:80]!r}: write numbers and ranges, as 3,10-20")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high >= width:
            raise InputError(f"--features {part.strip()}: the dictionary has features 0 to {width - 1:,}")
        found |= dict.fromkeys(range(low, high + 1))
    return list(found)
