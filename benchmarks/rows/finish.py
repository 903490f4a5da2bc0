"""Start to finish: ``gemlens analyze`` of the starter as ``make demo`` runs it, a whole process on a warm cache.

Then the same command with its own functions timed, in the process that measures: where the seconds go.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

from timing import Case, Work

PROMPT = "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in"
EXPORTS = [part for kind in ("html", "json", "jsonl") for part in ("--export", kind)]
# Step -> where its function is looked up, and its name.
STEPS = {
    "dictionary": ("gemlens.scope.load", "load_sae"),
    "model and tokenizer": ("gemlens.lm.load", "load_model"),
    "generation": ("gemlens.study.analyze", "generate"),
    "encode": ("gemlens.scope.sae:SAE", "encode"),
    "export": ("gemlens.report.files", "export"),
    "table": ("gemlens.report.table", "render"),
}


def _arguments(seed: int, folder: str) -> list[str]:
    source = ["--model-id", "starter", "--prompt", PROMPT, "--seed", str(seed)]
    return ["analyze", *source, "--max-new-tokens", "24", *EXPORTS, "--out-dir", folder]


def _whole(seed: int) -> Work:
    def run(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "gemlens.app.cli", *_arguments(seed, folder)]
            subprocess.run(command, capture_output=True, check=True)

    return Work(run, [seed], seed + 1, in_children=True)


def _in_steps(seed: int) -> Work:
    # No warm-up: the imports are part of it. The other case has put the files in the system's cache.
    return Work(_timed, [seed], facts=lambda steps: {"steps": steps})


def _timed(seed: int) -> dict[str, float]:
    steps: dict[str, float] = {}
    start = time.perf_counter()
    uncollected = pkgutil.resolve_name("gemlens.app.load:uncollected")
    with uncollected(), _adding(steps, "import torch"):
        importlib.import_module("torch")
    with uncollected(), _adding(steps, "import transformers' Gemma 3"):
        from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, PreTrainedTokenizerFast  # noqa: F401
    with _adding(steps, "import gemlens"):
        cli = importlib.import_module("gemlens.app.cli")
        places = {step: pkgutil.resolve_name(place) for step, (place, _) in STEPS.items()}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(redirect_stdout(sys.stderr))
        for step, (_, name) in STEPS.items():
            stack.enter_context(_patched(places[step], name, step, steps))
        stack.enter_context(suppress(SystemExit))
        cli.main(_arguments(seed, folder))
    return steps | {"everything else": time.perf_counter() - start - sum(steps.values())}


@contextmanager
def _adding(steps: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    steps[step] = steps.get(step, 0.0) + time.perf_counter() - start


@contextmanager
def _patched(place: Any, name: str, step: str, steps: dict[str, float]) -> Iterator[None]:
    """Time the calls of ``place.name``."""
    original = getattr(place, name)

    def timed(*args: Any, **options: Any) -> Any:
        with _adding(steps, step):
            return original(*args, **options)

    with patch.object(place, name, timed):
        yield


CASES = [
    Case("gemlens analyze, 24 new tokens, three exports", {"gemlens": _whole}),
    Case("the same, its own functions timed", {"gemlens": _in_steps}),
]
