"""The evidence of a dictionary, found by release and id as the dictionary itself is: beside its tensors.

    google/gemma-scope-2-270m-it   layer_12_width_16k_l0_small     from the cache, else by HTTP ranges from the hub
    path/to/folder                 resid_post/layer_12_…
    starter                        resid_post/layer_12_width_4k_l0_medium

Nothing of the dictionary is loaded but, where it is at hand, its decoder: a row of it says what a feature writes, all
rows which others write alike. Light: no torch.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlens import hub
from gemlens.errors import NotFoundError, WeightsError, nearest
from gemlens.parts import LocalParts
from gemlens.paths import local_folder
from gemlens.ranges import cached_file
from gemlens.records import DictionaryInfo
from gemlens.scope.examples import EXAMPLES, Examples
from gemlens.scope.folder import Folder, HubFolder, LocalFolder, read_config
from gemlens.scope.names import hub_place, model_name, sites, split_id
from gemlens.scope.slices import SliceFile
from gemlens.scope.starter import STARTER_RELEASE, starter_root
from gemlens.scope.statistics import STATISTICS, Statistics

__all__ = ["Evidence", "evidence_at_hand", "load_evidence"]

_PARAMS = "params.safetensors"
_DECODER = "w_dec"
_LARGEST = 1 << 30
"""Bytes of a decoder beyond which it is not read for the sake of neighbours."""


class Evidence:
    """What is known of the features of one dictionary; made by ``load_evidence``."""

    def __init__(self, folder: Folder, info: DictionaryInfo, examples: Examples, statistics: Statistics | None) -> None:
        self._folder, self.info, self.examples, self.statistics = folder, info, examples, statistics

    @property
    def model_id(self) -> str | None:
        """Model that the evidence was collected with: what the file says, else the dictionary's config."""
        said = self.examples.about.get("model_id")
        return said if isinstance(said, str) else self.info.model_name

    @property
    def is_here(self) -> bool:
        """On this machine, all of it."""
        return isinstance(self.examples.parts, LocalParts)

    def direction(self, feature: int) -> NDArray[np.float32] | None:
        """[d_out], what a feature writes, of norm 1; None where the decoder is not at hand or is int8."""
        if self._decoder is None:
            return None
        (rows,) = self._decoder.rows([(_DECODER, [feature])])
        return _unit(rows.astype(np.float32))[0]

    def nearest(self, feature: int, limit: int) -> list[tuple[int, float]]:
        """Other features by cosine of what they write; none where that would have to be downloaded."""
        if self._directions is None:
            return []
        cosines = self._directions @ self._directions[feature]
        cosines[feature] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(limit, len(cosines) - 1)]
        return [(int(index), float(cosines[index])) for index in order]

    @cached_property
    def _decoder(self) -> SliceFile | None:
        parts = self._folder.parts(_PARAMS)
        file = SliceFile(parts) if parts else None
        if file is None or _DECODER not in file or len(file.shape(_DECODER)) != 2:
            return None
        return file if file.is_float(_DECODER) and file.shape(_DECODER)[0] == self.examples.width else None

    @cached_property
    def _directions(self) -> NDArray[np.float32] | None:
        file = self._decoder
        if file is None or not isinstance(file.parts, LocalParts) or file.parts.size > _LARGEST:
            return None
        return _unit(file.all(_DECODER).astype(np.float32))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def load_evidence(
    release: str,
    dictionary_id: str = "",
    *,
    category: str | None = None,
    revision: str | None = None,
    whole: bool = False,
) -> Evidence:
    """Open the evidence of a dictionary: ``examples.safetensors`` and, where there is one, ``statistics.safetensors``.

    Of a file on the hub only the header is read, then the rows and sequences of each feature asked for.

    Args:
        release: hub repository, SAELens' release, folder, or ``starter``.
        dictionary_id: as for ``load_sae``.
        category: for ids without one.
        whole: fetch a file on the hub into the cache first, which pays for many features.

    Raises:
        NotFoundError: no such dictionary, or it has no evidence.
        WeightsError: damaged files, or of another width than the dictionary.
        AccessError, NetworkError: the hub does not give it out, or cannot be reached.
    """
    folder = _find(release, dictionary_id.strip("/"), category, revision)
    if whole and isinstance(folder, HubFolder):
        folder.need(EXAMPLES)
    return _open(folder) or _refuse(folder)


def evidence_at_hand(info: DictionaryInfo) -> Evidence | None:
    """The evidence of a dictionary that was loaded, if it is on this machine; the hub is not asked."""
    name = "/".join(filter(None, [info.category, info.id])) if info.path is None else info.path
    root = starter_root() if info.release == STARTER_RELEASE else local_folder(info.release)
    places = [root / name, root / info.id] if root else []
    if root is None and hub.is_repo_id(info.release):
        cached = cached_file(info.release, f"{name}/{EXAMPLES}", info.revision)
        places = [cached.parent] if cached else []
    try:
        for place in places:
            if _is_file(place / EXAMPLES):
                return _open(LocalFolder(info.release, name, place), info=info)
    except (NotFoundError, WeightsError):  # a help beside the thing itself: what is damaged is as good as absent
        pass
    return None


def _find(release: str, name: str, category: str | None, revision: str | None) -> Folder:
    path = "/".join(filter(None, split_id(name, category if name else None)))
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    if root is None:
        repo, path = hub_place(release, name, path)
        return HubFolder(repo, path, path, revision)
    for inside in dict.fromkeys([path, name]):
        if _is_file(root / inside / EXAMPLES):
            return LocalFolder(release, inside, root / inside)
    there = sorted(file.parent.relative_to(root).as_posix() for file in root.glob(f"**/{EXAMPLES}"))
    if len(there) == 1 and not path:
        return LocalFolder(release, there[0], root / there[0])
    for inside in filter(None, [path, name]):
        if _is_file(root / inside / "config.json"):
            return LocalFolder(release, inside, root / inside)
    if not there:
        raise NotFoundError(f"{release} holds no {EXAMPLES}; {_collect(release, path)}")
    if not path:
        raise NotFoundError(f"{release} holds evidence of several dictionaries; name one: {', '.join(there[:10])}")
    raise NotFoundError(f"{release} holds no evidence of {path!r}; {nearest(path, there)}")


def _open(folder: Folder, *, info: DictionaryInfo | None = None) -> Evidence | None:
    config: dict[str, Any] = {}
    if info is None and (path := folder.find("config.json")):
        config = read_config(path)
    parts = folder.parts(EXAMPLES)
    if parts is None:
        return None
    file = SliceFile(parts)
    tokens = file
    if "tokens" not in file and (named := file.metadata.get("tokens")):
        beside = folder.parts(named)
        if beside is None:
            raise WeightsError(
                f"{file.parts.name} says that its tokens are in {named[:80]!r}, and there is no such file"
            )
        tokens = SliceFile(beside)
    width = config.get("width") if info is None else info.width
    examples = Examples(file, tokens, width=width if isinstance(width, int) else None)
    if info is None:
        info = folder.info(sites(config, folder)[0], examples.width, model_name(config))
    counted = folder.parts(STATISTICS)
    return Evidence(folder, info, examples, Statistics(SliceFile(counted), width=examples.width) if counted else None)


def _refuse(folder: Folder) -> Evidence:
    name = folder.path or folder.release
    if isinstance(folder, HubFolder) and folder.find("config.json") is None:
        folder.need("config.json")  # raises, and names what is near
    raise NotFoundError(f"{name} has no {EXAMPLES} beside its tensors; {_collect(folder.release, folder.path)}")


def _collect(release: str, path: str) -> str:
    return (
        "Gemma Scope 2's dictionaries over one layer have one; make it for others: gemlens collect features "
        f"--sae-release {release}" + (f" --sae-id {path}" if path else "")
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than the file system allows
        return False
