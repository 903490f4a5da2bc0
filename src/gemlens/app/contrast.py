"""``gemlens contrast``: what fires for one set of texts and not for another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemlens.app.choices import listed, run_choices
from gemlens.app.choices_options import (
    DEFAULT_CHOICES_MODEL,
    L0Option,
    LayersOption,
    ScopeOption,
    SitesOption,
    Token,
    TokenOption,
    ViewOption,
    WidthOption,
    release_of,
)
from gemlens.app.console import notes
from gemlens.app.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    SeedOption,
    check_seed,
    check_sources,
    was_given,
)
from gemlens.errors import InputError
from gemlens.lm.starter import STARTER_NAME
from gemlens.scope.starter import STARTER_RELEASE

__all__ = ["contrast"]


def contrast(
    context: typer.Context,
    a: Annotated[
        Path,
        typer.Option(
            "--a", help="Texts: a .txt file of one a line, or .jsonl or .parquet with 'text'.", metavar="FILE"
        ),
    ],
    b: Annotated[Path, typer.Option("--b", help="Texts to hold them against.", metavar="FILE")],
    paired: Annotated[
        bool, typer.Option("--paired", help="Line by line; otherwise texts are paired at random.")
    ] = False,
    output_file: Annotated[
        Path, typer.Option(help="The JSON; views and a side file go beside it.", metavar="FILE")
    ] = Path("contrast.json"),
    top_k: Annotated[int, typer.Option(help="Features to list of each text and layer.", metavar="INT")] = 100,
    model_id: ModelOption = DEFAULT_CHOICES_MODEL,
    sae_release: ScopeOption = None,
    layers: LayersOption = "all",
    sites: SitesOption = "resid_post",
    width: WidthOption = None,
    l0: L0Option = "100",
    token: TokenOption = Token.mean,
    export: ViewOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
) -> None:
    """Find the features that fire for the texts of one file and not for those of another, by the same tests."""
    if sae_release == STARTER_RELEASE and not was_given(context, "model_id"):
        model_id = STARTER_NAME
    release = release_of(model_id, sae_release)
    check_sources(model_id, release, "", [])
    check_seed(seed)
    if top_k < 1:
        raise InputError(f"--top-k {top_k}: take 1 or more")
    console = notes()
    from gemlens.data.pairs import read_pairs

    pairs = read_pairs(a.expanduser(), b.expanduser(), paired=paired, seed=seed)
    chosen = listed(console, release, sites, layers, width, l0)
    run_choices(
        console,
        pairs,
        chosen,
        model_id=model_id,
        release=release,
        output=output_file.expanduser(),
        views=export,
        device=device.value,
        dtype=dtype.value,
        token=token.value,
        top_k=top_k,
        scored=False,
        seed=seed,
    )
