"""Groups to suggest: features of a circuit that seem to do one thing together, each with the reason.

Two features are held alike by four signs, each from 0 to 1, in this order of weight:

1. they are one feature, at two positions;
2. their decoder rows point the same way (cosine);
3. their labels, or where there are none the tokens they raise most, share words;
4. they have the same neighbours (cosine of their links, by size, inputs and outputs apart).

A group grows by average linkage, as long as its members are alike on average. The reason says which signs they share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gemlens.records.circuit import Circuit, CircuitNode, NodeEvidence, NodeGroup, shown_label

__all__ = ["suggest_groups"]

_ALIKE = 0.5
_MOST = 600
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(["and", "are", "for", "from", "its", "not", "that", "the", "their", "this", "was", "with"])


def suggest_groups(
    circuit: Circuit, evidence: Mapping[tuple[int, int], NodeEvidence] | None = None, *, alike: float = _ALIKE
) -> list[NodeGroup]:
    """Groups of two features or more, the most influential first; of large circuits among the 600 such features.

    Args:
        evidence: labels, tokens and decoder rows, by layer and number; without it only 1 and 4 are known.
        alike: how much so, from 0 to 1, the members of a group are on average.
    """
    chosen = [index for index, node in enumerate(circuit.nodes) if node.kind == "feature"]
    chosen = sorted(chosen, key=lambda index: (circuit.nodes[index].influence or 0.0, index))[:_MOST]
    if len(chosen) < 2:
        return []
    nodes = [circuit.nodes[index] for index in chosen]
    known = [(evidence or {}).get((node.layer or 0, node.feature or 0)) for node in nodes]
    signs = _Signs(circuit, chosen, nodes, known)
    groups = _linked(signs.alike(), alike)
    groups.sort(key=min)  # chosen are by influence
    return [
        NodeGroup(signs.label(group), tuple(chosen[k] for k in sorted(group)), signs.reason(group)) for group in groups
    ]


class _Signs:
    """The four signs, each [nodes, nodes]."""

    def __init__(
        self,
        circuit: Circuit,
        chosen: Sequence[int],
        nodes: Sequence[CircuitNode],
        known: Sequence[NodeEvidence | None],
    ) -> None:
        self.nodes, self.known = nodes, known
        keys = np.array([(node.layer or 0) * (1 << 32) + (node.feature or 0) for node in nodes])
        self.same = (keys[:, None] == keys[None]).astype(float)
        self.decoder = _cosines(_stacked(known))
        self.words = _telling([_words(node, each) for node, each in zip(nodes, known, strict=True)])
        self.shared = _jaccard(self.words)
        self.links = _neighbours(circuit, chosen)

    def alike(self) -> NDArray[np.float64]:
        """1 for the same feature; else the decoder, words and neighbours that are known, the larger two on average."""
        best = np.sort(np.stack([self.decoder, self.shared, self.links]), axis=0)[1:].mean(axis=0)
        return np.maximum(self.same, best)

    def label(self, group: Sequence[int]) -> str:
        """The words that most of its members share, else a name or token of the most influential one."""
        counts = Counter(word for k in group for word in self.words[k])
        common = [word for word, times in counts.most_common(3) if times > len(group) / 2]
        if common:
            return " ".join(common)
        first = min(group)
        node, evidence = self.nodes[first], self.known[first]
        if shown_label(node) or (evidence and evidence.label):
            return shown_label(node) or (evidence.label if evidence else "")
        if evidence and evidence.top_tokens:
            return " ".join(text.strip() for text, _ in evidence.top_tokens[:2])
        return f"{node.layer}/{node.feature}"

    def reason(self, group: Sequence[int]) -> str:
        pairs = np.ix_(list(group), list(group))
        off = ~np.eye(len(group), dtype=bool)
        if self.same[pairs].all():
            return f"one feature at {len(group)} positions"
        said = []
        if self.same[pairs][off].any():
            said.append("some are one feature at several positions")
        cosine = float(self.decoder[pairs][off].mean())
        if cosine >= 0.3:
            said.append(f"their decoders point the same way (cosine {cosine:.2f})")
        counts = Counter(word for k in group for word in self.words[k])
        common = [word for word, times in counts.most_common(3) if times > len(group) / 2]
        if common:
            said.append(f"they share {', '.join(common)}")
        near = float(self.links[pairs][off].mean())
        if near >= 0.3:
            said.append(f"they have the same neighbours (cosine {near:.2f})")
        return "; ".join(said) or "alike in several ways, a little in each"


def _linked(alike: NDArray[np.float64], least: float) -> list[list[int]]:
    """Average linkage from the most alike pair down to ``least``; groups of two and more."""
    groups = [[k] for k in range(len(alike))]
    mean, size = alike.copy(), np.ones(len(alike))
    np.fill_diagonal(mean, -1)
    while True:
        a, b = divmod(int(mean.argmax()), len(mean))
        if mean[a, b] < least:
            return [group for group in groups if len(group) > 1]
        joined = (mean[a] * size[a] + mean[b] * size[b]) / (size[a] + size[b])
        joined[[k for k, group in enumerate(groups) if not group] + [a, b]] = -1
        mean[a], mean[:, a] = joined, joined
        mean[b], mean[:, b] = -1, -1
        groups[a], groups[b] = groups[a] + groups[b], []
        size[a] += size[b]


def _stacked(known: Sequence[NodeEvidence | None]) -> NDArray[np.float64]:
    rows = [None if each is None else each.decoder for each in known]
    d = next((len(row) for row in rows if row is not None), 1)
    return np.stack([np.zeros(d) if row is None else np.asarray(row, dtype=np.float64) for row in rows])


def _cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, n], from 0 to 1; what points the other way is not alike."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(norms, 1e-12)
    return np.clip(unit @ unit.T, 0, 1)


def _words(node: CircuitNode, known: NodeEvidence | None) -> tuple[str, ...]:
    """Each once, in the order of the text."""
    label = shown_label(node) or (known.label if known else "")
    text = label or " ".join(token for token, _ in (known.top_tokens if known else ())[:5])
    return tuple(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word not in _COMMON))


def _telling(words: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without words that a third of all nodes have: they tell none from another."""
    counts = Counter(word for own in words for word in own)
    return [tuple(word for word in own if counts[word] <= max(2, len(words) / 3)) for own in words]


def _jaccard(words: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
    column = {word: k for k, word in enumerate(sorted(set().union(*words)))}
    table = np.zeros((len(words), len(column)))
    for k, own in enumerate(words):
        table[k, [column[word] for word in own]] = 1
    both = table @ table.T
    size = table.sum(axis=1)
    return both / np.maximum(size[:, None] + size[None] - both, 1)


def _neighbours(circuit: Circuit, chosen: Sequence[int]) -> NDArray[np.float64]:
    """[n, n], the mean cosine of what enters two nodes and of what they flow into; of both, the sizes of links."""
    place = {index: k for k, index in enumerate(chosen)}
    table = np.zeros((2, len(chosen), len(circuit.nodes)))
    for source, target, weight in zip(
        circuit.sources.tolist(), circuit.targets.tolist(), circuit.weights.tolist(), strict=True
    ):
        if target in place:
            table[0, place[target], source] += weight
        if source in place:
            table[1, place[source], target] += weight
    return (_cosines(table[0]) + _cosines(table[1])) / 2
