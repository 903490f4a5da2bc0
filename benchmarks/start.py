"""How long a user waits before anything happens: imports, help, refusals, the starter.

python benchmarks/start.py            prints a table of medians of 5, each in its own process
python benchmarks/start.py --convert  also converts the starter from its package, once, into a temporary cache
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

GEMLENS = [sys.executable, "-m", "gemlens.app.cli"]
READY = (
    "import time, torch, transformers\n"
    "from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast\n"
    "from gemlens.lm.load import load_model\n"
    "start = time.perf_counter(); load_model('starter'); print(time.perf_counter() - start)\n"
)
IMPORT = "import time; start = time.perf_counter(); import gemlens; print(time.perf_counter() - start)"
CONVERT = (
    "import time, torch, transformers\n"
    "from gemlens.lm.starter import starter_folder\n"
    "start = time.perf_counter(); starter_folder(); print(time.perf_counter() - start)\n"
)
REPEAT = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert", action="store_true")
    options = parser.parse_args()
    rows = [
        ("import gemlens", 0.3, _inside(IMPORT)),
        ("gemlens --help", 0.7, _whole([*GEMLENS, "--help"])),
        ("gemlens analyze --top-k 0, refused", 2.0, _whole([*GEMLENS, "analyze", "--top-k", "0"])),
        ("starter: model and tokenizer ready, after imports", 6.0, _inside(READY)),
    ]
    if options.convert:
        with tempfile.TemporaryDirectory() as cache:
            rows.append(("starter: converted, once, after imports", 45.0, _inside(CONVERT, 1, GEMLENS_CACHE=cache)))
    print(f"{'seconds':>8}  {'at most':>8}")
    for name, limit, seconds in rows:
        print(f"{seconds:8.2f}  {limit:8.1f}  {name}")


def _whole(command: list[str]) -> float:
    """Median seconds of a process from start to end."""
    times = []
    for _ in range(REPEAT):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _inside(code: str, repeat: int = REPEAT, **environment: str) -> float:
    """Median of the seconds that a process prints."""
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ | environment)
        for _ in range(repeat)
    ]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


if __name__ == "__main__":
    main()
