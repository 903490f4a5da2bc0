"""The bare reconstruction in place of what the model computes: what a dictionary leaves out is lost.

Everywhere else in gemlens an edit keeps the error, and a splice is for asking what becomes of the model without it
(``study/fidelity.py`` measures that). Here it is a ``with`` like the other edits, in generation too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from gemlens.errors import InputError
from gemlens.lm.gemma import Model
from gemlens.scope.multilayer import MultiLayer
from gemlens.scope.sae import SAE
from gemlens.scope.selected import select
from gemlens.sites import Site
from gemlens.study.edits import Edit, Fixed, Now, Write, editing
from gemlens.study.fit_check import check_fit
from gemlens.study.places import Active, Places, Positions
from gemlens.study.replacement import reconstructors

__all__ = ["splice"]


@contextmanager
def splice(
    model: Model,
    dictionary: SAE | MultiLayer,
    *,
    without: Sequence[int] = (),
    positions: Positions = None,
    where: Active | None = None,
    bos: bool = False,
    prompt_tokens: int | None = None,
) -> Iterator[None]:
    """Replace what passes the sites that a dictionary writes by its reconstruction, the error thrown away.

    Args:
        dictionary: an SAE, a transcoder (in place of the MLP) or a CLT (in place of all MLPs).
        without: features to leave out of the reconstruction; of an SAE or transcoder.
        positions, where, bos, prompt_tokens: as for ``ablate``.

    Raises:
        InputError: a crosscoder, whose reconstruction needs the layers above; no such feature or position.
        MismatchError: a dictionary that does not fit the model.
    """
    check_fit(model, dictionary)
    if isinstance(dictionary, MultiLayer) and without:
        raise InputError(f"{dictionary.info.id} is over several layers: splice it whole, and ablate its features")
    if isinstance(dictionary, MultiLayer) and not dictionary.is_transcoder:
        raise InputError(f"{dictionary.info.id} is a crosscoder: what it writes to a layer needs the layers above")
    fixed = _silent(dictionary, without) if isinstance(dictionary, SAE) else []
    places = Places.of(model, [dictionary.info], positions, where, bos)
    with ExitStack() as stack:
        for reads, writes, recon in _reconstructors(dictionary, without):
            edit = Edit(f"splice {dictionary.info.id}", {writes: _write(recon)}, places, reads=reads, fixed=fixed)
            stack.enter_context(editing(model, edit, prompt=prompt_tokens))
        yield


def _reconstructors(
    dictionary: SAE | MultiLayer, without: Sequence[int]
) -> Iterator[tuple[Site, Site, Callable[[Tensor], Tensor]]]:
    if not isinstance(dictionary, SAE) or not without:
        yield from reconstructors(dictionary)
        return
    sae = dictionary
    yield sae.reads, sae.writes, lambda x: sae.output(sae.encode(x).without(without), x)


def _write(recon: Callable[[Tensor], Tensor]) -> Write:
    def written(x: Tensor, now: Now) -> Tensor:
        at = now.mask.expand(x.shape[:2])
        new = x.clone()
        new[at] = recon(now.kept.expand(*x.shape[:2], -1)[at]).to(x)
        return new

    return written


def _silent(dictionary: SAE, without: Sequence[int]) -> list[Fixed]:
    chosen = select(dictionary, without)
    rows = chosen.rows[dictionary.writes]
    return [Fixed(chosen.named(each), rows[i], 0.0) for i, each in enumerate(chosen.ids)]
