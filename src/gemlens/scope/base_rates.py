"""How often each feature of a dictionary fires in general, as far as files beside it say; no torch.

``max_activation.safetensors`` is what training writes: the tokens on which each feature fired, of as many as
``card.json`` says. Evidence (``feature_frequencies`` of ``examples.safetensors``) knows the same, of other texts.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from gemlens.paths import local_folder
from gemlens.scope.starter import STARTER_RELEASE, starter_root

__all__ = ["base_rates"]


def base_rates(release: str, path: str, width: int) -> NDArray[np.float64] | None:
    """[width], shares of tokens; None where no file says, or one of another width does."""
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if root is None:
        return None
    folder = root / path
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tokens = json.loads((folder / "card.json").read_text("utf-8")).get("dead_tokens")
        counts = load_file(folder / "max_activation.safetensors").get("tokens_active")
    # A help beside the thing itself: what cannot be read is as good as absent.
    except (OSError, ValueError, AttributeError, SafetensorError):
        return None
    if counts is None or counts.shape != (width,) or not isinstance(tokens, int) or tokens <= 0:
        return None
    return np.asarray(counts, dtype=np.float64) / tokens
