"""``gemlens collect features``: evidence of what a dictionary's features mean, from texts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemlens.app.console import busy, notes, tell
from gemlens.app.load import load
from gemlens.app.measuring import progress
from gemlens.app.options import (
    DEFAULT_MODEL,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    check_seed,
    check_sources,
    parse_count,
)
from gemlens.app.output import prepared
from gemlens.app.token_bar import token_bar
from gemlens.errors import InputError, NotFoundError, nearest
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.starter import STARTER_RELEASE

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.lm.gemma import Model
    from gemlens.records.collected import Collected
    from gemlens.study.finder import Passes

__all__ = ["features"]


class Engine(StrEnum):
    local = "local"
    ray = "ray"


def features(
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="What to read: .txt; .jsonl or .parquet with 'text'; a folder of them; or a data set of the hub, as "
            "hf:OWNER/NAME; repeat it.",
            metavar="PATH",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the evidence, laid out as the release; goes on there.", metavar="FOLDER"),
    ] = None,
    model_id: ModelOption = DEFAULT_MODEL,
    sae_release: Annotated[
        str | None,
        typer.Option(
            help="Hub repository, SAELens' release or folder of dictionaries, or 'starter'.  "
            "[default: starter with --model-id starter]",
            metavar="RELEASE",
        ),
    ] = None,
    sae_id: Annotated[
        list[str] | None,
        typer.Option(help="Dictionary; repeat it for several.  [default: all of the release]", metavar="ID"),
    ] = None,
    sae_category: Annotated[
        str | None,
        typer.Option(help="Only dictionaries of this folder; and for ids that do not name one.", metavar="FOLDER"),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens to read, e.g. 300k or 2M.  [default: all]", metavar="COUNT")
    ] = None,
    examples: Annotated[int, typer.Option(help="Examples to keep a feature.", metavar="INT")] = 32,
    quantiles: Annotated[
        int,
        typer.Option(help="How many of them to spread over the quantiles of its activations.", metavar="INT"),
    ] = 0,
    row_length: Annotated[int, typer.Option(help="Tokens of a row of text, BOS included.", metavar="INT")] = 128,
    seed: Annotated[int, typer.Option(help="Of the order of the text.", metavar="INT")] = 0,
    logits: Annotated[
        bool, typer.Option("--logits/--no-logits", help="Also the tokens that each feature promotes.")
    ] = True,
    compact: Annotated[bool, typer.Option("--compact", help="In float16 and small integers.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="local, or ray: the workers of a Ray cluster.", metavar="NAME")
    ] = Engine.local,
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray; as many as find room if left out.", metavar="INT")
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """Read texts with a model and many dictionaries at once, and keep of each feature where it fires and how.

    Writes examples.safetensors and statistics.safetensors for each dictionary. A run that was stopped goes on when the
    same command is given again.
    """
    if not texts:
        raise InputError("no text was given; name some with --texts: a file, a folder, or hf:OWNER/NAME")
    if out is None:
        raise InputError("no folder was given; name one with --out, it is created if need be")
    if sae_release is None and model_id == STARTER_NAME:
        sae_release = STARTER_RELEASE
    if sae_release is None:
        raise InputError("no dictionaries were given; name their release with --sae-release, some of it with --sae-id")
    check_sources(model_id, sae_release, sae_category or "resid_post", list(sae_id or []))
    check_seed(seed)
    if workers is not None and (workers < 1 or engine != Engine.ray):
        raise InputError(f"--workers {workers}: 1 or more, with --engine ray")
    wanted = None if tokens is None else parse_count("--tokens", tokens)
    from gemlens.data.corpus import documents

    files = documents([path.expanduser() for path in texts])
    out = out.expanduser()
    console = notes()
    ids = list(dict.fromkeys(sae_id or [])) or _all_of(console, sae_release, sae_category)
    with prepared("--out", out, []):
        category = sae_category or "resid_post"
        dictionaries, model, warnings = load(
            console, model_id, sae_release, category, ids, device=device.value, dtype=dtype.value
        )
        for warning in warnings:
            tell(console, f"warning: {warning}")
        passes = None
        if engine == Engine.ray:
            paths = ["/".join(filter(None, [each.info.category, each.info.id])) for each in dictionaries]
            passes = _over_ray(model, model_id, sae_release, paths, workers)
        from gemlens.study.collect import collect_features

        with _bars(console) as bars:
            try:
                made = collect_features(
                    model, dictionaries, files, out,
                    tokens=wanted, row_length=row_length, examples=examples, quantiles=quantiles, seed=seed,
                    logits=logits, compact=compact, passes=passes, **bars,
                )  # fmt: skip
            except KeyboardInterrupt:
                tell(console, f"stopped; the same command goes on with what {out} holds")
                raise
    _say(console, made, sum(each.width for each in dictionaries), wanted)


def _all_of(console: Console, release: str, category: str | None) -> list[str]:
    """Every SAE and transcoder of a release, or of one folder of it."""
    from gemlens.scope.listing import listing

    with busy(console, f"Looking up {release}"):
        found = listing(release)
    chosen = sorted(each.path for each in found if category in (None, each.category))
    if not chosen:
        raise NotFoundError(
            f"no dictionary of {release} lies in {category}; {nearest(category or '', {e.category for e in found})}"
        )
    return chosen


def _over_ray(model: Model, model_id: str, release: str, paths: list[str], workers: int | None) -> Passes:
    """Passes on a cluster whose workers load what this process has loaded."""
    import torch

    from gemlens.external.ray import ordered
    from gemlens.study.finder import features_of, load_finder

    threads = torch.get_num_threads()
    make = partial(
        load_finder,
        model_id,
        release,
        paths,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=threads,
    )
    on_gpu = float(model.device.type == "cuda")
    return lambda batches: map(features_of, ordered(make, batches, workers=workers, threads=threads, gpus=on_gpu))


@contextmanager
def _bars(console: Console) -> Iterator[dict[str, Callable[..., Any]]]:
    """What ``collect_features`` reports to: a bar while it reads, then another; two at once garble each other."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        reading = stack.enter_context(token_bar(console))
        shown: list[Callable[[str, int, int], None]] = []

        def report_logits(path: str, done: int, total: int) -> None:
            if not shown:
                stack.close()
                shown.append(stack.enter_context(progress(console)))
            shown[0](f"What {path} promotes", done, total)

        yield {"report": reading, "report_logits": report_logits}


def _say(console: Console, made: Collected, width: int, wanted: int | None) -> None:
    for note in made.notes:
        tell(console, f"note: {note}")
    if wanted is not None and made.tokens < wanted:
        tell(console, f"warning: the text ends after {made.tokens:,} of {wanted:,} tokens")
    count = len(made.dictionaries)
    tell(
        console,
        f"{made.folder} holds evidence of {width:,} features of {count} dictionar{'y' if count == 1 else 'ies'}, from "
        f"{made.tokens:,} tokens: {made.size / 1e6:,.1f} MB",
    )
