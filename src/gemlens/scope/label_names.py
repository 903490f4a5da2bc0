"""Which dictionary a label belongs to: one exact name for every way to call it.

    gemma-scope-2b-pt-res-canonical, layer_20/width_16k/canonical
        google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71
    starter, resid_post/layer_12_width_4k_l0_medium
        starter/resid_post/layer_12_width_4k_l0_medium
    ./mine, resid_post/layer_12_width_4k_l0_medium
        /home/me/mine/resid_post/layer_12_width_4k_l0_medium

``resid_post`` and ``resid_post_all`` hold different dictionaries under one name, hence the whole path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gemlens import hub
from gemlens.errors import InputError, NotFoundError, nearest
from gemlens.paths import local_folder
from gemlens.records import DictionaryInfo
from gemlens.scope import catalog
from gemlens.scope.listing import Listed, listing
from gemlens.scope.starter import STARTER_RELEASE, starter_root

__all__ = ["Named", "by_neuronpedia_id", "check_source", "key_of", "named", "of_release"]


@dataclass(frozen=True, slots=True)
class Named:
    """A dictionary by name alone: no weights are looked at."""

    key: str
    """What its labels are stored under."""
    release: str
    """As asked for."""
    id: str
    """As asked for, with its category."""
    repo: str | None = None
    """On the hub; None for folders and the starter."""
    path: str = ""
    """Inside the repository or the folder."""
    width: int | None = None
    """Number of features, where name or config say it."""
    neuronpedia: str | None = None
    """``model/source`` where it is known for exactly this dictionary."""


def key_of(info: DictionaryInfo) -> str:
    """What the labels of a dictionary are stored under."""
    path = info.path if info.path is not None else "/".join(filter(None, (info.category, info.id)))
    return _key(info.release, path)


def named(release: str, sae_id: str = "", *, category: str | None = None) -> Named:
    """Find a dictionary as ``load_sae`` does, by names only: nothing is downloaded, and torch stays out.

    Raises:
        NotFoundError: a folder without it, or names that nobody knows; nearest names included.
        InputError: no id for a release that holds several.
    """
    name = sae_id.strip("/")
    inside, _, last = name.rpartition("/")
    path = "/".join(filter(None, (inside or (category or "" if name else ""), last)))
    if release == STARTER_RELEASE or local_folder(release):
        return _in_folder(release, path, name)
    try:
        entry = catalog.resolve(release, path or name)
    except NotFoundError:
        try:
            entry = catalog.resolve(release, name)
        except NotFoundError:
            if not hub.is_repo_id(release) or not path:
                raise
            return Named(_key(release, path), release, path, release, path)  # newer than the catalogue
    known = catalog.neuronpedia_id(entry.repo, entry.path)
    return Named(_key(entry.repo, entry.path), release, name, entry.repo, entry.path, entry.width, known)


def of_release(release: str, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that are dictionaries of a release: a hub repository, SAELens' name, a folder or ``starter``.

    Raises:
        NotFoundError: a name that nobody knows; nearest included.
    """
    if release == STARTER_RELEASE or local_folder(release):
        root = _key(release, "")
        return [key for key in keys if key == root or key.startswith(root + "/")]
    entries = catalog.entries()
    theirs = {f"{entry.repo}/{entry.path}" for entry in entries if entry.release == release}
    if hub.is_repo_id(release):
        return [key for key in keys if key.startswith(release + "/") or key in theirs]
    if not theirs:
        known = {entry.release for entry in entries}
        raise NotFoundError(
            f"{release[:200]!r} is neither a folder nor a hub repository (owner/name), and no release of the "
            f"catalogue; {nearest(release[:200], known)}"
        )
    return [key for key in keys if key in theirs]


def by_neuronpedia_id(source: str) -> Named | None:
    """The dictionary that ``model/source`` on Neuronpedia is of, where the catalogue knows exactly one."""
    found = {(entry.repo, entry.path): entry for entry in catalog.entries() if entry.neuronpedia == source}
    own = [entry for place, entry in found.items() if catalog.neuronpedia_id(*place) == source]
    if len(own) != 1:
        return None
    entry = own[0]
    return Named(_key(entry.repo, entry.path), entry.repo, entry.path, entry.repo, entry.path, entry.width, source)


def check_source(dictionary: Named, source: str) -> None:
    """Refuse an id of Neuronpedia that the catalogue knows to be another dictionary's.

    Raises:
        InputError: naming whose it is.
    """
    theirs = {
        (entry.repo, entry.path)
        for entry in catalog.entries()
        if entry.neuronpedia == source and catalog.neuronpedia_id(entry.repo, entry.path)
    }
    if theirs and (dictionary.repo, dictionary.path) not in theirs:
        whose = " or ".join("/".join(each) for each in sorted(theirs)[:2])
        raise InputError(
            f"{source} on Neuronpedia is {whose}, not {dictionary.key}; labels of one dictionary mean nothing in "
            f"another; take {dictionary.neuronpedia or 'another id'}"
        )


def _key(release: str, path: str) -> str:
    if release != STARTER_RELEASE and (root := local_folder(release)):
        return (root.absolute().resolve() / path).as_posix()
    return "/".join(filter(None, (release, path)))


def _in_folder(release: str, path: str, name: str) -> Named:
    root = starter_root() if release == STARTER_RELEASE else local_folder(release)
    assert root is not None
    there = listing(release, clts=True)
    for wanted in dict.fromkeys((path, name)):
        if same := [each for each in there if each.path in (wanted, wanted or ".")]:
            return _listed(release, same[0])
    if not path and len(there) == 1:
        return _listed(release, there[0])
    names = [each.path for each in there]
    if not path:
        raise InputError(f"{release} holds several dictionaries; name one with --sae-id: {nearest('', names)}")
    raise NotFoundError(f"{release} holds no dictionary {path!r}; {nearest(path, names)}")


def _listed(release: str, found: Listed) -> Named:
    path = "" if found.path == "." else found.path
    return Named(_key(release, path), release, path or Path(release).name, None, path, found.width)
