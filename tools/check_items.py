"""The items that ship with gemlens are its own: no run of eight words is shared with PIQA.

    GEMLENS_SHARED=FOLDER python tools/check_items.py [FILE.jsonl ...]

Compared are FOLDER/piqa/*.jsonl, or the files named. Also held: fifty items, as many right answers first as second,
answers of like length, and neither side longer on the whole. Prints what is wrong and exits with 1.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ITEMS = Path(__file__).parents[1] / "src/gemlens/data/everyday_physics.jsonl"
RUN = 8
APART = 8


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(texts: Iterable[str], length: int = RUN) -> set[tuple[str, ...]]:
    """Every run of ``length`` words in some texts."""
    found = set()
    for text in texts:
        said = words(text)
        found |= {tuple(said[start : start + length]) for start in range(len(said) - length + 1)}
    return found


def whole(row: dict[str, Any]) -> list[str]:
    """What one item says, question and answers joined as a reader meets them."""
    question = row.get("goal") or row.get("query", "")
    answers = [row[name] for name in ("sol1", "sol2") if name in row] or row.get("choices", [])
    return [f"{question} {answer}" for answer in answers]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def wrong(items: list[dict[str, Any]], others: Iterable[Path]) -> list[str]:
    """What does not hold, a line each."""
    found = []
    if len(items) != 50 or sum(item["label"] for item in items) != 25:
        found.append(
            f"{len(items)} items, {sum(item['label'] for item in items)} with the second answer; want 50 and 25"
        )
    longer = 0
    for item in items:
        right, other = (len(item[name]) for name in (("sol1", "sol2"), ("sol2", "sol1"))[item["label"]])
        longer += (right > other) - (right < other)
        if abs(right - other) > APART:
            found.append(f"answers of {right} and {other} characters: {item['goal']}")
    if abs(longer) > 10:
        found.append(f"the right answer is the longer one {longer:+} times more often than the shorter")
    mine = runs(text for item in items for text in whole(item))
    for path in others:
        shared = mine & runs(text for row in rows(path) for text in whole(row))
        found += [f"in {path.name} too: {' '.join(run)}" for run in sorted(shared)]
    return found


def main() -> None:
    named = [Path(each) for each in sys.argv[1:]]
    shared = os.environ.get("GEMLENS_SHARED")
    others = named or (sorted(Path(shared, "data/piqa").glob("*.jsonl")) if shared else [])
    if not others:
        sys.exit("nothing to compare with: name files, or set GEMLENS_SHARED")
    found = wrong(rows(ITEMS), others)
    print("\n".join(found) or f"50 items, none of whose runs of {RUN} words is in {', '.join(p.name for p in others)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
