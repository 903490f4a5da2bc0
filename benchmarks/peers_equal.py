"""Do gemlens and its peers compute the same features? Run in the peers' environment: make bench

Each check gives both sides the same files and the same activations in float32; ``equality`` says what is compared.
The table goes to the terminal, and with machine, versions and command to benchmarks/results/peers_equal.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import gemlens
from equality import TOLERANCE, Check, Side, compare, compare_layers, encoder_of, ours_of
from gemlens.external.saelens import from_saelens, to_saelens
from gemlens.lm.gemma import activations
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.scope.load import load_clt, load_sae
from gemlens.scope.sae import SAE
from gemlens.scope.starter import STARTER_DICTIONARY
from machine import machine, versions
from page import write_whole
from peers import sae_lens_of, theirs_of
from trained import trained

RESULTS = Path(__file__).parent / "results" / "peers_equal.json"
PROMPT = (
    "The lamp in the harbour went out at nine, and the man who kept it walked home along the wall. He had wanted to "
    "tell somebody about the light he saw in the water, but there was nobody to tell; the boats were in, the doors "
    "were shut, and the rain had begun. In the morning he wrote it down instead: a green light, low, moving against "
    "the wind, and gone when he lifted his hand."
)
D, WIDTH, TOKENS, LAYERS = 640, 2048, 256, 4


def starter_residuals(sae: SAE) -> Tensor:
    """[n, 640], the real residual stream of a prompt, BOS left out."""
    model = gemlens.load_model("starter", device="cpu")
    ids = encode_prompt(model, prompt_text(model, PROMPT))
    return activations(model, ids, [sae.reads])[sae.reads][0, 1:].float()


def sae_lens_starter() -> Iterator[Check]:
    """The starter's dictionary in SAELens' own class, filled by hand, and through the adapter, there and back."""
    sae = load_sae("starter", STARTER_DICTIONARY)
    x, encoder = starter_residuals(sae), encoder_of(sae)
    ours = ours_of(sae, x)
    for name, peer in (("starter dictionary", sae_lens_of(sae)), ("starter dictionary, to_saelens", to_saelens(sae))):
        yield compare(name, "sae-lens", ours, theirs_of(peer, x), encoder, x)
    back = from_saelens(to_saelens(sae))
    yield compare("starter dictionary, from_saelens(to_saelens)", "gemlens", ours, ours_of(back, x), encoder, x)


def random_tensors(seed: int, outputs: int | None = None) -> dict[str, Tensor]:
    """Tensors in Gemma Scope 2's published names; a few percent of the features fire on a random input."""
    generator = torch.Generator().manual_seed(seed)
    wide = (WIDTH, D) if outputs is None else (WIDTH, outputs, D)
    return {
        "w_enc": torch.randn(D, WIDTH, generator=generator) / D**0.5,
        "w_dec": torch.randn(wide, generator=generator) / D**0.5,
        "b_enc": torch.randn(WIDTH, generator=generator) * 0.1,
        "b_dec": torch.randn(D, generator=generator),
        "threshold": torch.rand(WIDTH, generator=generator) + 1.5,
        # Not symmetric, so that the wrong way round shows.
        "affine_skip_connection": torch.randn(D, D, generator=generator) / D**0.5,
    }


def random_input(seed: int) -> Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(seed))


def circuit_tracer_transcoders() -> Iterator[Check]:
    """Transcoders of random numbers in Gemma Scope 2's layout, with and without affine skip."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder

    x = random_input(1)
    for affine in (False, True):
        name = f"transcoder/layer_5_width_2k_l0_small{'_affine' if affine else ''}"
        tensors = random_tensors(2)
        if not affine:
            del tensors["affine_skip_connection"]
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, name)
            folder.mkdir(parents=True)
            save_file(tensors, folder / "params.safetensors")
            sae = load_sae(root, name)
            file = str(folder / "params.safetensors")
            theirs = load_gemma_scope_2_transcoder(file, 5, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            acts = theirs.encode(x)
            side = Side(acts, theirs.decode(acts, x))
        yield compare(f"random {name}", "circuit-tracer", ours_of(sae, x), side, encoder_of(sae), x)


def circuit_tracer_clt() -> Iterator[Check]:
    """A CLT of random numbers.

    circuit-tracer's loader reads the files of ``range(max(paths))``: all but the last layer's. Given one path more,
    which it never opens, it reads those that it should.
    """
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    name = "clt/width_8k_l0_small_affine"
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, name)
        folder.mkdir(parents=True)
        paths = {layer: str(folder / f"params_layer_{layer}.safetensors") for layer in range(LAYERS)}
        for layer, path in paths.items():
            save_file(random_tensors(10 + layer, LAYERS), path)
        clt = load_clt(root, name)
        settings = {"device": torch.device("cpu"), "dtype": torch.float32}
        try:
            known = f"gives {load_gemma_scope_2_clt(dict(paths), **settings).n_layers} of {LAYERS} layers"
        except RuntimeError as error:
            known = f"fails on {LAYERS} layers ({str(error).splitlines()[0]})"
        theirs = load_gemma_scope_2_clt(paths | {LAYERS: paths[LAYERS - 1]}, **settings)
    note = f"CLT: circuit-tracer's loader {known}; compared with a path past the end added"
    x = torch.stack([random_input(20 + layer) for layer in range(LAYERS)])
    yield from compare_layers(f"random {name}", "circuit-tracer", clt, theirs, x, note)


CHECKS: list[Callable[[], Iterator[Check]]] = [
    sae_lens_starter,
    circuit_tracer_transcoders,
    circuit_tracer_clt,
    trained,
]


def main() -> None:
    checks = [check for each in CHECKS for check in each()]
    _print(checks)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "command": "make bench",
        "machine": machine(),
        "versions": versions(),
        "tolerance": TOLERANCE,
        "checks": [asdict(check) | {"holds": check.holds} for check in checks],
    }
    write_whole(RESULTS, json.dumps(record, indent=2) + "\n")
    print(f"\nwrote benchmarks/results/{RESULTS.name}")
    if not all(check.holds for check in checks):
        sys.exit("gemlens and a peer disagree")


def _print(checks: list[Check]) -> None:
    widest = max(len(check.name) for check in checks)
    print(f"{'':{widest}}  {'peer':14}  {'active':>8}  {'differing':>9}  {'values':>8}  {'recon.':>8}")
    for check in checks:
        differing = f"{check.differing}" + (f" ({check.differing_at_threshold} at t.)" if check.differing else "")
        print(
            f"{check.name:{widest}}  {check.peer:14}  {check.active:8,}  {differing:>9}  {check.worst_value:8.1e}  "
            f"{check.worst_reconstruction:8.1e}  {'equal' if check.holds else 'DIFFERS'}"
        )
    for note in dict.fromkeys(check.note for check in checks if check.note):
        print(f"  {note}")


if __name__ == "__main__":
    main()
