"""Collect evidence on the starter's 4,096 features at layer 12: what counting adds to the forward pass, in float32, of
40,640 tokens, files included, logits left out; and beside SAEDashboard 0.8.0, all of it, of 8,128 tokens.

The floor of the first is the forward pass alone, of the same rows in the same batches, already tokens; gemlens reads
the text, too. SAEDashboard runs in an environment of its own (``dashboard_side.py``), with a cache of activations, so
that it reads the text once, and is timed when all is loaded. It makes the data of all features and writes nothing,
since their page takes it longer than all else; gemlens writes its files.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from timing import Absent, Aim, Case, Work

LENGTH, ROWS, ROWS_BESIDE = 128, 320, 64
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "benchmarks/.env-dashboard/bin/python"


def _texts() -> Any:
    from gemlens.data.corpus import documents

    return documents([ROOT / "tests/texts"])


def _rows(model: Any, count: int, seed: int) -> Any:
    """[count, LENGTH], what ``collect_features`` reads with this seed."""
    from itertools import islice

    import numpy as np

    from gemlens.data.corpus import pack
    from gemlens.data.mix import mixed
    from gemlens.lm.text import encode_documents

    def encode(group: list[str]) -> list[list[int]]:
        return encode_documents(model, group)

    return np.stack(list(islice(pack(mixed(_texts(), seed), encode, bos=model.bos, length=LENGTH), count)))


def _model() -> Any:
    from gemlens.lm.load import load_model

    return load_model("starter", device="cpu", dtype="float32")


def _gemlens(rows: int, *, logits: bool) -> Any:
    def side(seed: int) -> Work:
        from gemlens.study.collect import collect_features
        from given import starter_dictionary

        model, sae, folder = _model(), starter_dictionary(), tempfile.TemporaryDirectory()

        def run(job: tuple[int, int]) -> Any:
            count, seed = job
            return collect_features(
                model, [sae], _texts(), Path(folder.name, f"{count}-{seed}"),
                tokens=count * (LENGTH - 1), row_length=LENGTH, seed=seed, examples=20, quantiles=0, logits=logits,
            )  # fmt: skip

        facts = lambda made: {"tokens": made.tokens, "bytes": made.size}  # noqa: E731
        return Work(run, [(rows, seed)], (32, seed + 1), [model.module, sae], facts)

    return side


def _forward(seed: int) -> Work:
    import torch

    from gemlens.lm.gemma import activations
    from gemlens.lm.stream import TOGETHER
    from given import SITE

    model = _model()
    rows = torch.from_numpy(_rows(model, ROWS, seed))

    def run(part: Any) -> None:
        for batch in part.split(TOGETHER):
            activations(model, batch, [SITE])

    return Work(run, [rows], torch.from_numpy(_rows(model, 32, seed + 1)), [model.module])


def _dashboard(seed: int) -> Work:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from gemlens.lm.starter import starter_folder
    from given import starter_dictionary

    if not DASHBOARD.exists():
        raise Absent(f"{DASHBOARD} does not exist; make bench ROWS=collect makes it")
    folder, sae = tempfile.TemporaryDirectory(), starter_dictionary()
    root = Path(folder.name)
    encoder, decoder = (torch.cat([block for _, block in rows.blocks()]) for rows in (sae.encoder, sae.decoder))
    tensors = {"W_enc": encoder.T.contiguous(), "W_dec": decoder}
    tensors |= {name: getattr(sae, name) for name in ("b_enc", "b_dec", "threshold")}
    save_file(tensors, root / "sae.safetensors")
    np.save(root / "rows.npy", _rows(_model(), ROWS_BESIDE, seed))
    command = [
        DASHBOARD,
        ROOT / "benchmarks/dashboard_side.py",
        starter_folder(),
        "sae.safetensors",
        "rows.npy",
    ]
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        stderr=subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    _wait_for(process, "ready")

    def run(name: str) -> Any:
        assert process.stdin is not None
        process.stdin.write(f"{root / name}\n")
        process.stdin.flush()
        _wait_for(process, "seconds")
        return folder

    return Work(run, ["cache"], facts=lambda _: {"tokens": ROWS_BESIDE * (LENGTH - 1)}, in_children=True)


def _environment() -> dict[str, str]:
    """Without ``PYTHONPATH``, which names gemlens' sources."""
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _wait_for(process: Any, word: str) -> None:
    for line in process.stdout:
        if line.startswith(word):
            return
    raise RuntimeError(f"SAEDashboard ended with {process.wait()}; run benchmarks/dashboard_side.py by hand")


CASES = [
    Case(
        "40,640 tokens, without logits",
        {"gemlens": _gemlens(ROWS, logits=False), "forward pass alone": _forward},
        {"forward pass alone": Aim(longer=1 / 0.9)},
        repetitions=3,
    ),
    Case(
        "8,128 tokens, all of it, once",
        {"gemlens": _gemlens(ROWS_BESIDE, logits=True), "SAEDashboard": _dashboard},
        {"SAEDashboard": Aim(faster=5)},
        repetitions=1,
    ),
]
