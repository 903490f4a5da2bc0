"""Dictionaries that ``gemlens train`` wrote, fetched and read by the peers' own loaders.

SAEs, transcoders and CLTs of a tiny random Gemma, the last two with and without a skip; stored as float32, as bfloat16,
and as int8, which ``gemlens export`` writes out as float32 for the peers. They find them on a hub that runs on this
machine, under names as Google's. Both sides then compute in float32.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

from equality import Check, Side, compare, compare_layers, encoder_of, ours_of
from fake_hub import FakeHub, connected
from gemlens.app.cli import app
from gemlens.lm.gemma import activations
from gemlens.lm.load import load_model
from gemlens.scope.formats import dictionaries_below
from gemlens.scope.load import load_clt, load_sae
from gemlens.sites import Site
from gemlens.study.fidelity import rows_of
from tiny import files_below, tiny_model_folder

__all__ = ["trained"]

LAYERS = 3
OWNER = "someone"
TEXT = "the cat and the dog sat in the sun. then the man sang, and the hat fell in the sand. " * 400
RUNS = {
    "sae": ["sae", "--sites", "resid_post.1,attn_out.0,mlp_out.2"],
    "transcoder": ["transcoder", "--layers", f"0-{LAYERS - 1}"],
    "skip transcoder": ["transcoder", "--layers", f"0-{LAYERS - 1}", "--skip"],
    "clt": ["clt", "--layers", f"0-{LAYERS - 1}"],
    "skip clt": ["clt", "--layers", f"0-{LAYERS - 1}", "--skip"],
}
STORED = ("float32", "bfloat16", "int8")


def trained() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "text.txt").write_text(TEXT, encoding="utf-8")
        tiny_model_folder(root / "gemma-3-tiny", layers=LAYERS)
        given = _inputs(root / "gemma-3-tiny")
        written = {(run, stored): _written(root, run, stored) for run in RUNS for stored in STORED}
        repos = {_repo(*key): _as_published(_repo(*key), folder) for key, (_, folder) in written.items()}
        with FakeHub(repos) as hub, _reached(hub.url, root / "home"):
            for (run, stored), (folder, _) in written.items():
                read = _of_sae_lens if run == "sae" else _of_clt if "clt" in run else _of_transcoders
                yield from read(f"trained {run}, {stored}", _repo(run, stored), folder, given)


def _written(root: Path, run: str, stored: str) -> tuple[Path, Path]:
    """The folder of a run of ``gemlens train``; and for the peers the same, or what was exported from its int8."""
    out, exported = root / f"{run} {stored}", root / f"{run} exported"
    small = ["--width", 32, "--l0", 4, "--tokens", "6k", "--batch", 64, "--row-length", 32, "--buffer", 512]
    source = ["--model-id", root / "gemma-3-tiny", "--texts", root / "text.txt", "--dtype", "float32"]
    _gemlens("train", *RUNS[run], *source, *small, "--save-dtype", stored, "--out", out)
    if stored != "int8":
        return out, out
    _gemlens("export", out, "--dtype", "float32", "--out", exported)
    return out, exported


def _gemlens(*arguments: object) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        app([str(argument) for argument in arguments], standalone_mode=False)


def _inputs(folder: Path) -> dict[Site, Tensor]:
    """Activations of some text at every site that is read, BOS left out."""
    model = load_model(str(folder), device="cpu")
    rows = [torch.from_numpy(row) for row, _ in zip(rows_of(model, [TEXT], length=100), range(3), strict=False)]
    names = ("resid_post", "attn_out", "mlp_out", "mlp_in")
    sites = [Site(layer, name) for layer in range(LAYERS) for name in names]
    found = activations(model, torch.stack(rows), sites)
    return {site: x[:, 1:].flatten(0, 1).float() for site, x in found.items()}


def _repo(run: str, stored: str) -> str:
    """circuit-tracer knows the layout by these words."""
    return f"{OWNER}/gemma-scope-2-{run.replace(' ', '-')}-{stored}"


def _as_published(repo: str, folder: Path) -> dict[str, bytes]:
    """The folder's files, and the list of them that circuit-tracer reads: a file a layer.

    Its loader of CLTs leaves out the last one that it is told of, so that one more is named.
    """
    files = files_below(folder)
    tensors = sorted(name for name in files if name.endswith(".safetensors") and name != "checkpoint.safetensors")
    clt = any("params_layer_" in name for name in tensors)
    about = {
        "model_kind": "cross_layer_transcoder" if clt else "transcoder_set",
        "model_name": "gemma-3-tiny",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "transcoders": [f"hf://{repo}/{name}" for name in tensors + tensors[-1:] * clt],
    }
    return files | {"config.yaml": yaml.safe_dump(about).encode()}


@contextlib.contextmanager
def _reached(url: str, home: Path) -> Iterator[None]:
    """The hub, also by the functions of huggingface_hub that noted its address when they were imported."""
    from huggingface_hub import hf_api

    with connected(url, home=home), mock.patch.object(hf_api.api, "endpoint", url):
        yield


# Each is given what to call it, where the peers find it, and the folder that gemlens reads.


def _of_sae_lens(note: str, repo: str, folder: Path, given: dict[Site, Tensor]) -> Iterator[Check]:
    import sae_lens
    from sae_lens.loading.pretrained_sae_loaders import gemma_3_sae_huggingface_loader

    for name in sorted(dictionaries_below(folder)):
        theirs = sae_lens.SAE.from_pretrained(repo, name, converter=gemma_3_sae_huggingface_loader)
        sae = load_sae(str(folder), name)
        x = given[sae.reads]
        with torch.no_grad():
            side = Side(theirs.encode(x), theirs(x))
        yield compare(f"{note}, {sae.reads}", "sae-lens", ours_of(sae, x), side, encoder_of(sae), x)


def _of_transcoders(note: str, repo: str, folder: Path, given: dict[Site, Tensor]) -> Iterator[Check]:
    yield from _of_sae_lens(note, repo, folder, given)
    theirs = _circuit_tracers(repo)
    saes = [load_sae(str(folder), name) for name in sorted(dictionaries_below(folder))]
    x = torch.stack([given[sae.reads] for sae in saes])
    with torch.no_grad():
        acts = theirs.encode(x)
        recon = theirs.decode(acts, x)
    for layer, sae in enumerate(saes):
        side = Side(acts[layer], recon[layer])
        name = f"{note}, {sae.reads}"
        yield compare(name, "circuit-tracer", ours_of(sae, x[layer]), side, encoder_of(sae), x[layer])


def _of_clt(note: str, repo: str, folder: Path, given: dict[Site, Tensor]) -> Iterator[Check]:
    (name,) = dictionaries_below(folder)
    clt = load_clt(str(folder), name)
    # The loader leaves the skip in the file's dtype, which float32 activations cannot be multiplied by.
    theirs = _circuit_tracers(repo).float()
    yield from compare_layers(note, "circuit-tracer", clt, theirs, torch.stack([given[site] for site in clt.reads]))


def _circuit_tracers(repo: str) -> Any:
    from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        return load_transcoder_from_hub(repo, **place, lazy_encoder=False, lazy_decoder=False, use_cache=False)[0]
