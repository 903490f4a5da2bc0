"""``gemlens encode``: sparse features of activations that another tool saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemlens.app.console import busy, notes, tell
from gemlens.app.measuring import progress
from gemlens.app.options import (
    DEFAULT_MODEL,
    CategoryOption,
    Device,
    DeviceOption,
    ReleaseOption,
    check_sources,
    default_dictionary,
)
from gemlens.app.output import prepared
from gemlens.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.encoded import EncodedPart, Encoding

__all__ = ["encode"]

_MANY_TIMES = 4
"""A first token at which so many times as many features fire as elsewhere is a BOS."""


def encode(
    file: Annotated[
        Path,
        typer.Argument(help=".npy or .safetensors, [n, d] or [n, sequence, d].", metavar="FILE", show_default=False),
    ],
    sae_release: ReleaseOption = None,
    sae_id: Annotated[
        str | None,
        typer.Option(help="Dictionary; its own default if left out, as of analyze.", metavar="ID", show_default=False),
    ] = None,
    sae_category: CategoryOption = "resid_post",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .parquet, .npz or .jsonl.  [default: FILE's name, .features.parquet]"),
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="Which one, if a .safetensors file holds several.", metavar="NAME")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep only the strongest of each token.  [default: all that fire]", metavar="INT")
    ] = None,
    skip: Annotated[
        int,
        typer.Option(help="Tokens at the start of each sequence to leave out: 1 for a BOS.", metavar="INT"),
    ] = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Turn saved activations into sparse features."""
    file = file.expanduser()
    out = out.expanduser() if out is not None else file.with_name(f"{file.stem}.features.parquet")
    release, (name,) = default_dictionary(DEFAULT_MODEL, sae_release, [sae_id] if sae_id else None)
    check_sources(DEFAULT_MODEL, release, sae_category, [name])
    if top_k is not None and top_k < 1:
        raise InputError(f"--top-k {top_k}: keep at least 1 feature a token")
    if skip < 0:
        raise InputError(f"--skip {skip}: 0 leaves out nothing, 1 a BOS")
    if not file.is_file():
        raise NotFoundError(f"{file} does not exist; name a .npy or .safetensors file of activations")
    if out.resolve() == file.resolve():
        raise InputError(f"--out {out} is the file of activations itself; name another")
    from gemlens.report.sparse import check_kind, sparse_file

    check_kind(out)
    console = notes()
    with busy(console, "Loading torch"):
        from gemlens.data.saved import open_saved
        from gemlens.lm.load import pick_device
        from gemlens.scope.load import load_sae
        from gemlens.study.encode import encode_saved, encoding_of

        place = pick_device(device.value)
    saved = open_saved(file, tensor)
    with prepared("--out", out.parent, [out.name]):
        sae = load_sae(release, name, category=sae_category.strip("/"), device=place)
        encoding = encoding_of(sae, saved, top_k=top_k, skip=skip)
        counts = _Counts(encoding)
        with ExitStack() as stack:
            add = stack.enter_context(sparse_file(out, encoding))
            show = stack.enter_context(progress(console))
            for part in encode_saved(
                sae, saved, top_k=top_k, skip=skip, report=lambda done, total: show(f"Encoding {file}", done, total)
            ):
                counts.add(part)
                add(part)
    counts.say(console, out)


class _Counts:
    """How many features fire, at first tokens and elsewhere."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.per_row = encoding.shape[1] if len(encoding.shape) == 3 else 0
        self.tokens = self.active = self.first = 0

    def add(self, part: EncodedPart) -> None:
        import numpy as np

        l0 = np.diff(part.indptr)
        self.tokens += len(l0)
        self.active += int(l0.sum())
        if self.per_row:
            self.first += int(l0[(part.first + np.arange(len(l0))) % self.per_row == 0].sum())

    def say(self, console: Console, out: Path) -> None:
        rows = self.encoding.shape[0]
        others = (self.active - self.first) / max(1, self.tokens - rows)
        if self.per_row > 1 and not self.encoding.top_k and self.first / rows > _MANY_TIMES * max(others, 1):
            tell(
                console,
                f"warning: {self.first / rows:,.0f} features fire at the first token of a sequence, {others:,.0f} at "
                "others: it looks like a BOS, which no dictionary was trained on; leave it out with --skip 1",
            )
        tell(
            console,
            f"{out} holds {self.active:,} activations of {self.tokens:,} tokens, {self.active / self.tokens:,.1f} a "
            f"token, by {self.encoding.dictionary}",
        )
