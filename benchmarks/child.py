"""One side of one case, once: python benchmarks/child.py ROW CASE SIDE SEED; ``same`` for SIDE compares the sides.

Prints what it measured as one line of JSON. Imports nothing heavy itself: some rows time imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import sys
import time
from typing import Any

from memory import Peak, bytes_of, children_peak
from timing import Absent, Case, Work

__all__ = ["cases", "measure"]


def cases(row: str) -> list[Case]:
    return list(importlib.import_module(f"rows.{row}").CASES)


def measure(work: Work) -> dict[str, Any]:
    if work.warm is not None:
        work.run(work.warm)
    each, result = [], None
    gc.collect()
    peak = Peak()
    for given in work.timed:
        # The last result is not the next one's memory.
        result = None
        start = time.perf_counter()
        result = work.run(given)
        each.append(time.perf_counter() - start)
    above = children_peak() if work.in_children else peak.above()
    held = bytes_of(work.holds, work.timed[-1], result)
    return {
        "seconds": statistics.median(each),
        "each": each,
        "tensor_bytes": held or None,
        "peak_bytes": above,
        "facts": work.facts(result),
    }


def main() -> None:
    row, name, side, seed = sys.argv[1:]
    case = next(case for case in cases(row) if case.name == name)
    try:
        if side == "same":
            assert case.same is not None
            found = case.same(int(seed))
        else:
            found = measure(case.sides[side](int(seed)))
    except Absent as why:
        found = {"absent": str(why)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
