"""The attribution graph of a prompt with the starter's transcoders: pruned, printed, written as a page.

python examples/build_attribution_graph.py "The capital of France is" --out graph.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gemlens
from gemlens.files import write
from gemlens.records.circuit import Circuit
from gemlens.records.graph import Graph
from gemlens.report.circuit_page import to_html
from gemlens.report.circuit_table import node_name
from gemlens.scope.sets import find_set, load_set
from gemlens.study.circuit.evidence import evidence_of
from gemlens.study.circuit.groups import suggest_groups
from gemlens.study.circuit.paths import strongest_paths
from gemlens.study.circuit.prune import prune
from gemlens.study.circuit.trace import circuit


def build_attribution_graph(prompt: str) -> tuple[Graph, Circuit, str]:
    """The graph whole, the part that matters, and the page of that part."""
    model = gemlens.load_model("starter")
    transcoders = load_set(find_set("starter"))
    graph = circuit(model, transcoders, prompt)
    pruned = prune(graph, node_threshold=0.8, edge_threshold=0.98)
    known = evidence_of(model, transcoders, pruned)
    page = to_html(
        pruned, evidence=known, groups=suggest_groups(pruned, known), paths=strongest_paths(pruned, 8, least=1)
    )
    return graph, pruned, page


def main() -> None:
    parser = argparse.ArgumentParser(description="What the next token is made of.")
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--out", type=Path, default=Path("graph.html"))
    given = parser.parse_args()
    graph, pruned, page = build_attribution_graph(given.prompt)
    print(f"{len(graph.features)} features, of which {sum(node.kind == 'feature' for node in pruned.nodes)} matter")
    for path in strongest_paths(pruned, 5, least=1):
        names = [node_name(pruned, pruned.nodes[index]) for index in path.nodes]
        print(f"  {100 * path.share:+6.2f} %  {' -> '.join(names)}")
    write(page, given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
