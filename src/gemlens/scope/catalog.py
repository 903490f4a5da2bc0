"""Every published dictionary under SAELens' names, without asking anybody: rules here, numbers in ``catalog_table``.
The starter's, where it is installed, stand among them.

    release                              id                               path in the hub repository
    gemma-scope-2-270m-it-res            layer_12_width_16k_l0_small      resid_post/layer_12_width_16k_l0_small
    gemma-scope-2-270m-it-transcoders    transcoder/layer_12_width_…      the same
    gemma-scope-2b-pt-res                layer_20/width_16k/average_l0_71 the same
    gemma-scope-2b-pt-res-canonical      layer_20/width_16k/canonical     layer_20/width_16k/average_l0_71

What the hub has come to hold since, ``gemlens catalog --live REPO`` finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from gemlens.errors import InputError, NotFoundError, nearest
from gemlens.scope import catalog_table as table
from gemlens.scope.starter import starter_entries

__all__ = ["Entry", "entries", "find", "neuronpedia_id", "resolve"]

_NUMBER = re.compile(r"\s*([0-9]{1,9})\s*")
_ID_OF = re.compile(r"[^/]+/(\d+)-gemmascope(?:-2)?-[a-z]+-([0-9]+[km])(?:__l0-(\d+))?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of one dictionary; a canonical name and the full one are two entries with one path."""

    release: str
    """SAELens' name of the release; for CLTs and crosscoders, which it does not list, gemlens' own; ``starter``."""
    id: str
    path: str
    """Folder inside the repository."""
    repo: str
    """Hub repository, or ``starter``."""
    model: str
    """As SAELens lists it: ``gemma-2-2b``, ``google/gemma-3-270m-it``."""
    site: str
    """What it reads, e.g. ``resid_post``."""
    layer: int | None
    """None for CLTs and crosscoders, which read several; 0 for embeddings."""
    width: int
    """Number of features, over all layers."""
    width_name: str
    """As in the path: ``16k``."""
    l0: int | None
    """As SAELens lists it; see also ``mean_l0``."""
    neuronpedia: str | None
    """As SAELens lists it, twice with the id of another dictionary: link by ``neuronpedia_id(repo, path)``."""
    kind: table.Kind
    format: Literal["npz", "safetensors"]

    @property
    def mean_l0(self) -> int | None:
        """``l0``, or what the folder says where none is listed: canonical names and embeddings."""
        said = re.search(r"/average_l0_(\d+)$", self.path)
        return self.l0 if self.l0 is not None or said is None else int(said[1])


@cache
def entries() -> tuple[Entry, ...]:
    """All of them, Gemma Scope 1 first, the starter's last."""
    return (*_gemma_scope_1(), *_gemma_scope_2(), *_several_layers(), *starter_entries())


def find(
    *,
    model: str | None = None,
    site: str | None = None,
    layer: int | None = None,
    width: str | int | None = None,
    l0: int | None = None,
    release: str | None = None,
) -> list[Entry]:
    """Return the entries that match all of what is given, at least one.

    Args:
        model: with or without ``google/``.
        site: e.g. ``resid_post``.
        layer: of dictionaries that read one layer; CLTs and crosscoders match no layer.
        width: ``"16k"``, ``"16384"`` or 16384.
        l0: mean L0, exactly.
        release: SAELens' release or the hub repository.

    Raises:
        NotFoundError: nothing matches; names the nearest values among what the rest left over.
    """
    found = list(entries())
    if release is not None:
        found = [entry for entry in found if _bare(release) in (entry.release, _bare(entry.repo))]
        if not found:
            raise _no_release(release)
    said = f" in {release}" if release is not None else ""
    number = _NUMBER.fullmatch(str(width))
    wanted: list[tuple[str, Any, Callable[[Entry], Any]]] = [
        ("model", None if model is None else _bare(model), lambda entry: _bare(entry.model)),
        ("site", site, lambda entry: entry.site),
        ("layer", layer, lambda entry: entry.layer),
        (
            "width",
            int(number[1]) if number else None if width is None else str(width).strip().lower(),
            lambda entry: entry.width if number else entry.width_name,
        ),
        ("L0", l0, lambda entry: entry.mean_l0),
    ]
    for what, value, of in wanted:
        if value is None:
            continue
        kept = [entry for entry in found if of(entry) == value]
        if not kept:
            near = _close(value, {of(entry) for entry in found} - {None})
            raise NotFoundError(f"the catalogue has no dictionary of {what} {str(value)[:100]}{said}; {near}")
        found, said = kept, f"{said or ' with'}{',' if said else ''} {what} {value}"
    return found


def resolve(release: str, id: str) -> Entry:
    """Return the entry of a release and id, of a hub repository and path, or of a hub repository and id.

    Raises:
        NotFoundError: no such name, with the nearest; or one that was never published.
        InputError: the id names several dictionaries of the repository; all are listed.
    """
    name, wanted = _bare(release), id.strip("/")
    same = [entry for entry in entries() if entry.release == name]
    inside = same or [entry for entry in entries() if _bare(entry.repo) == name]
    if not inside:
        raise _no_release(release)
    # A release of Gemma Scope 1 and its repository share their name; canonical ids are in the repository.
    for pool in (same, [entry for entry in entries() if _bare(entry.repo) == name]):
        for key in ("path", "id"):
            found = {entry.path: entry for entry in pool if getattr(entry, key) == wanted}
            if len(found) == 1:
                return next(iter(found.values()))
            if found:
                raise InputError(f"{release} has {len(found)} dictionaries called {id}; name one: {', '.join(found)}")
    names = {entry.id for entry in same} or {entry.path for entry in inside}
    raise NotFoundError(
        f"the catalogue has no {id[:200]!r} in {release} (`gemlens catalog --live {inside[0].repo}` asks the hub); "
        f"{nearest(wanted, names)}"
    )


def neuronpedia_id(repo: str, path: str) -> str | None:
    """Neuronpedia's ``model/source`` for exactly this dictionary, or None.

    ``("google/gemma-scope-2-270m-pt", "resid_post/layer_12_width_16k_l0_medium")`` is
    ``gemma-3-270m/12-gemmascope-2-res-16k``. The same name under ``resid_post_all`` is another dictionary.
    """
    return _neuronpedia_ids().get((repo, path))


@cache
def _neuronpedia_ids() -> dict[tuple[str, str], str]:
    # Canonical names come after full ones and win: both have pages.
    return {(entry.repo, entry.path): entry.neuronpedia for entry in entries() if entry.neuronpedia and _its_own(entry)}


def _its_own(entry: Entry) -> bool:
    """Whether the listed id of Neuronpedia says this layer, width and, if any, L0."""
    said = _ID_OF.fullmatch(entry.neuronpedia or "")
    return bool(
        said
        and int(said[1]) == entry.layer
        and said[2] == entry.width_name
        and (said[3] is None or int(said[3]) == entry.mean_l0)
    )


def _gemma_scope_1() -> Iterator[Entry]:
    for name, lines in table.GEMMA_2.items():
        size, stage, last = name.split("-")
        model = f"gemma-2-{size}" + ("-it" if stage == "it" else "")
        repo, source = f"google/gemma-scope-{name}", f"gemmascope-{_source(last)}"
        canonical: list[Entry] = []
        for folder, width, l0s in _rows(lines):
            layer = None if folder == "embedding" else int(folder.removeprefix("layer_"))
            site, kind = table.GEMMA_2_SITES["embedding" if layer is None else last]
            pages = f"{model}/{layer}-{source}-{width}"
            fixed = (repo, model, site, layer or 0, table.WIDTHS[width], width)
            for l0, shown in l0s.items():
                path = f"{folder}/width_{width}/average_l0_{l0}"
                ours = pages if last == "transcoders" else f"{pages}__l0-{l0}" if shown else None
                ours = table.LISTED_NEURONPEDIA.get((name, path), ours)
                listed = None if layer is None else l0
                yield Entry(f"gemma-scope-{name}", path, path, *fixed, listed, ours, kind, "npz")
            if layer is None or last == "transcoders" or (name, layer, width) in table.NO_CANONICAL:
                continue
            l0 = table.CANONICAL_TIES.get((name, layer, width), min(l0s, key=lambda l0: abs(l0 - 100)))
            id, path = f"{folder}/width_{width}/canonical", f"{folder}/width_{width}/average_l0_{l0}"
            listed = table.CANONICAL_L0.get((name, layer, width))
            canonical.append(Entry(f"gemma-scope-{name}-canonical", id, path, *fixed, listed, pages, kind, "npz"))
        yield from canonical


def _rows(lines: str) -> Iterator[tuple[str, str, dict[int, bool]]]:
    """Of ``"5: 16k 18* 34 / 65k 17"``: folder, width, and for each L0 whether Neuronpedia has pages of its own."""
    for cell in lines.strip().replace("\n", " | ").split(" | "):
        layer, _, rest = cell.partition(": ")
        for part in rest.split(" / "):
            width, *l0s = part.split()
            folder = layer if layer == "embedding" else f"layer_{layer}"
            yield folder, width, {int(l0.rstrip("*")): l0.endswith("*") for l0 in l0s}


def _gemma_scope_2() -> Iterator[Entry]:
    for size, (n_layers, deep) in table.GEMMA_3.items():
        for stage in ("pt", "it"):
            for last in table.FOLDERS:
                yield from _grid(size, stage, last, deep)
                yield from _grid(size, stage, f"{last}-all", range(n_layers))


def _grid(size: str, stage: str, last: str, layers: Iterable[int]) -> Iterator[Entry]:
    """One release: its layers x widths x L0s x with and without skip, less its holes."""
    name, short = f"{size}-{stage}-{last}", last.removesuffix("-all")
    if name in table.NO_RELEASE:
        return
    folder, site, kind, skips = table.FOLDERS[short]
    widths = table.DEEP_WIDTHS + (("1m",) if name in table.ALSO_1M else ())
    l0s = table.DEEP_L0
    if last != short:
        folder, widths, l0s = f"{folder}_all", table.ALL_WIDTHS, table.ALL_L0
    kinds = [(width, l0, skip) for width in widths for l0 in l0s for skip in ("", "_affine")[: 1 + skips]]
    if last == "res":
        kinds.append(table.SECOND_SEED)
    repo, model = f"google/gemma-scope-2-{size}-{stage}", _gemma_3(size, stage)
    pages, source = _bare(model).removesuffix("-pt"), f"gemmascope-2-{_source(short)}"
    for layer in layers:
        for width, word, suffix in kinds:
            tail = f"width_{width}_l0_{word}{suffix}"
            id, path = f"layer_{layer}_{tail}", f"{folder}/layer_{layer}_{tail}"
            if path in table.MISSING.get(name, ()) or path not in table.ONLY.get(name, (path,)):
                continue
            first, full = l0s[word]
            l0 = min(full, first + (full - first) * 3 * layer // table.GEMMA_3[size][0])
            shown = table.SHOWN.get(name, {}).get(tail, ())
            ours = f"{pages}/{layer}-{source}-{width}" if shown is None or layer in shown else None
            where = (f"gemma-scope-2-{name}", path if last == "transcoders" else id, path, repo, model)
            yield Entry(*where, site, layer, table.WIDTHS[width], width, l0, ours, kind, "safetensors")


def _several_layers() -> Iterator[Entry]:
    """CLTs and crosscoders, by rule: see the table for what was seen of them."""
    for size, (_, deep) in table.GEMMA_3.items():
        joined = "_".join(map(str, deep))
        names: list[tuple[table.Kind, str, str]] = []
        names += [("clt", "mlp_in", name) for name in table.CLT_NAMES if size in table.CLT_SIZES]
        names += [("crosscoder", "resid_post", f"layer_{joined}_{name}") for name in table.CROSSCODER_NAMES]
        for stage in ("pt", "it"):
            repo, model = f"gemma-scope-2-{size}-{stage}", _gemma_3(size, stage)
            for kind, site, id in names:
                width = id.partition("width_")[2].partition("_")[0]
                features = table.CLT_WIDTH if kind == "clt" else table.WIDTHS[width]
                where = (f"{repo}-{kind}", id, f"{kind}/{id}", f"google/{repo}", model)
                yield Entry(*where, site, None, features, width, None, None, kind, "safetensors")


def _gemma_3(size: str, stage: str) -> str:
    """The base model of 270M is the only one without -pt."""
    return f"google/gemma-3-{size}" + ("" if (size, stage) == ("270m", "pt") else f"-{stage}")


def _source(last: str) -> str:
    """Of a release's last word, the word in Neuronpedia's ids."""
    return "transcoder" if last == "transcoders" else last


def _bare(name: str) -> str:
    return name.strip().removeprefix("google/")


def _close(value: Any, there: set[Any]) -> str:
    """The nearest numbers, or names."""
    if not there:  # CLTs and crosscoders: several layers, no L0
        return "none is listed of these, leave it out"
    if isinstance(value, int):
        near = sorted(sorted(there, key=lambda number: abs(number - value))[:5])
        return f"there is {', '.join(map(str, near))}" + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    if there <= set(table.WIDTHS):
        return f"there is {', '.join(sorted(there, key=list(table.WIDTHS).index))}"
    return nearest(str(value), there, limit=len(there) if len(there) <= 6 else 3)


def _no_release(name: str) -> NotFoundError:
    bare = _bare(name)
    short = re.sub(r"^gemma-scope-|-pt(?=-)|-canonical$", "", bare)
    if short in table.NEVER_PUBLISHED:
        return NotFoundError(f"{name} was never published: {table.NEVER_PUBLISHED[short]}")
    known = {entry.release for entry in entries()} | {_bare(entry.repo) for entry in entries()}
    return NotFoundError(f"the catalogue has no release or repository {name[:100]!r}; {nearest(bare, known)}")
