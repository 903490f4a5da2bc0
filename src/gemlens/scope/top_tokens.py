"""The top tokens that Gemma Scope 2 ships with each feature, in ``examples.safetensors``, where that file is at hand.

It is some 0.8 GB and nothing here fetches it; of one that is here, only the rows that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemlens.errors import WeightsError
from gemlens.scope.folder import LocalFolder, is_cached
from gemlens.scope.load import locate

__all__ = ["shipped_top_tokens"]

_FILE = "examples.safetensors"


def shipped_top_tokens(
    release: str, name: str, features: Sequence[int], *, category: str | None = None
) -> dict[int, list[int]]:
    """Token ids by feature, largest logit first; nothing where the file is not here, or has none.

    Raises:
        NotFoundError: no such dictionary.
        WeightsError: the file is damaged, or of another dictionary.
    """
    from safetensors import SafetensorError, safe_open

    folder, _ = locate(release, name, category, None)
    here = isinstance(folder, LocalFolder) or is_cached(folder.release, f"{folder.path}/{_FILE}", None)
    path = folder.find(_FILE) if here else None
    if path is None:
        return {}
    try:
        with safe_open(path, framework="np") as file:
            if "top_tokens" not in file.keys():  # noqa: SIM118 - it is no dict
                return {}
            rows = file.get_slice("top_tokens")
            width = rows.get_shape()[0]
            if beyond := [feature for feature in features if feature >= width]:
                raise WeightsError(f"{path} has top tokens of {width} features, not of {beyond[0]}; download it again")
            return {feature: rows[feature : feature + 1][0].tolist() for feature in features}
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} cannot be read ({error}); download it again") from error
