"""How long a user waits before anything happens: imports, help, refusals, the starter.

The first three are whole processes. The starter's one-time conversion from its package goes into a temporary cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from timing import Aim, Case, Work

GEMLENS = [sys.executable, "-m", "gemlens.app.cli"]


def _command(*command: str) -> Callable[[int], Work]:
    def run(_: object) -> None:
        subprocess.run(command, capture_output=True, check=False)

    return lambda _: Work(run, [None] * 3, "once", in_children=True)


def _load(_: int) -> Work:
    # Imports are apart: transformers loads its classes when they are first named.
    from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    from gemlens.lm.load import load_model

    return Work(lambda _: load_model("starter").module, [None])


def _convert(_: int) -> Work:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from gemlens.lm.starter import starter_folder

    def run(_: object) -> None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["GEMLENS_CACHE"] = cache
            starter_folder()

    return Work(run, [None])


def _case(name: str, seconds: float, side: Callable[[int], Work]) -> Case:
    return Case(name, {"gemlens": side}, {"gemlens": Aim(seconds=seconds)})


CASES = [
    _case("import gemlens", 0.3, _command(sys.executable, "-c", "import gemlens")),
    _case("gemlens --help", 0.7, _command(*GEMLENS, "--help")),
    _case("gemlens analyze --top-k 0, refused", 2.0, _command(*GEMLENS, "analyze", "--top-k", "0")),
    _case("starter's model and tokenizer, after imports", 6.0, _load),
    _case("starter converted, once, after imports", 45.0, _convert),
]
