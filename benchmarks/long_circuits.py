"""Attribution graphs of long prompts, time and memory: python benchmarks/long_circuits.py TOKENS FEATURES

Text of this repository, the starter's transcoders with their skips, float32. Memory is the peak above what the loaded
model and transcoders take, the graph included; where the graph is a mapped file, its pages in memory count.
"""

from __future__ import annotations

import argparse
import time

from circuits import transcoders
from gemlens.study.circuit.trace import circuit
from given import prompts, starter
from machine import machine
from memory import Peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=int)
    parser.add_argument("features", type=int)
    parser.add_argument("--no-skips", action="store_true")
    options = parser.parse_args()
    model, ours = starter(), transcoders(skip=not options.no_skips)
    [prompt] = prompts(model, 1, options.tokens, 0)
    circuit(model, ours, "The capital of France is")
    peak, start = Peak(), time.perf_counter()
    graph = circuit(model, ours, prompt, max_features=options.features)
    seconds, above = time.perf_counter() - start, peak.above()
    print(machine())
    print(
        f"{len(graph.tokens)} tokens, {len(graph.features)} of {graph.n_active} features: "
        f"{seconds:.0f} s, {(above or 0) / 2**30:.2f} GiB, edges {graph.edges.nbytes / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
