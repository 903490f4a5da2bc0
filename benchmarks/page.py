"""Results to docs/performance.md and to the terminal: python benchmarks/page.py

The page is written by hand, but for what stands between ``<!-- bench ROW -->`` and ``<!-- end -->``, which comes from
results/ROW.json, and ``<!-- bench summary -->``, a line for each aim. A row without a place gets one at the end.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["lines", "row_part", "summary_part", "update", "write_whole"]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
VERDICT = {True: "reached", False: "**missed**", None: "–"}
_SHOWN = ("torch", "transformers", "sae-lens", "transformer-lens", "eai-sparsify")
Record = dict[str, Any]


def update(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write what the results say into the page; what is between no marks stays."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))}
    rows = {name: record for name, record in found.items() if "cases" in record}
    old = text = page.read_text("utf-8")
    for name, part in [("summary", summary_part(rows)), *((name, row_part(rows[name])) for name in rows)]:
        if f"<!-- bench {name} -->" not in text:
            text += f"\n## {name}\n\n<!-- bench {name} -->\n<!-- end -->\n"
        place = re.compile(rf"(<!-- bench {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda marks, part=part: f"{marks[1]}\n{part}\n{marks[2]}", text)  # type: ignore[misc]
    if text != old:
        write_whole(page, text)


def write_whole(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def summary_part(rows: dict[str, Record]) -> str:
    table = ["| row | case | against | gemlens is | aim | |", "|---|---|---|---|---|---|"]
    for name, record in rows.items():
        for case in record["cases"]:
            for ratio in case["ratios"]:
                if ratio["aim"]:
                    against = "–" if _is_own(case, ratio) else ratio["against"]
                    cells = [name, case["case"], against, _ratio(case, ratio), ratio["aim"], VERDICT[ratio["reached"]]]
                    table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table) + "\n"


def row_part(record: Record) -> str:
    heads = ["case", "side", "median", "min-max", "ratio", "of single repetitions", "aim", "", "peak memory", "tensors"]
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    notes = []
    for case in record["cases"]:
        ratios = {ratio["against"]: ratio for ratio in case["ratios"]}
        for index, (name, side) in enumerate(case["sides"].items()):
            seconds, ratio = side["seconds"], ratios.get(name)
            cells = [
                case["case"] if index == 0 else "",
                name,
                _time(seconds["median"]),
                f"{_time(seconds['min'])} - {_time(seconds['max'])}",
                *_verdict(case, ratio),
                _bytes(side["peak_bytes"]),
                _bytes(side["tensor_bytes"]),
            ]
            table.append(f"| {' | '.join(cells)} |")
            notes += _steps(name, side)
        notes += _figures(case)
        if "same" in case:
            notes.append(f"Same results, {case['case']}: {_facts(case['same'])}.\n")
    return "\n".join([*table, "", *notes, _about(record)])


def lines(case: Record) -> Iterator[str]:
    """For the terminal."""
    yield case["case"]
    for name, side in case["sides"].items():
        memory = f"peak {_bytes(side['peak_bytes'])} beside tensors of {_bytes(side['tensor_bytes'])}"
        told = "".join(f", {head} {figure}" for head, figure in _told(side).items())
        yield f"  {name:24} {_time(side['seconds']['median']):>9}   {memory}{told}"
    for ratio in case["ratios"]:
        shown, single, aim, verdict = (cell.replace("*", "") for cell in _verdict(case, ratio))
        if _is_own(case, ratio):
            yield f"  {aim} {verdict}"
        else:
            yield f"  against {ratio['against']:16} {shown:>9}   ({single})  {aim} {verdict}".rstrip(" –")
    if "same" in case:
        yield f"  same results: {_facts(case['same'])}"


def _is_own(case: Record, ratio: Record) -> bool:
    return ratio["against"] == next(iter(case["sides"]))


def _ratio(case: Record, ratio: Record) -> str:
    if _is_own(case, ratio):
        return _time(case["sides"][ratio["against"]]["seconds"]["median"])
    return f"{1 / ratio['faster']:.3f} × the time" if ratio["inverse"] else f"{ratio['faster']:.2f} × as fast"


def _verdict(case: Record, ratio: Record | None) -> list[str]:
    """Ratio, its range over single repetitions, aim, whether it was reached."""
    if ratio is None:
        return ["", "", "", ""]
    ends = [1 / ratio["high"], 1 / ratio["low"]] if ratio["inverse"] else [ratio["low"], ratio["high"]]
    single = "" if _is_own(case, ratio) else " - ".join(f"{end:.2f}" for end in ends)
    return [_ratio(case, ratio), single, ratio["aim"] or "–", VERDICT[ratio["reached"]]]


def _steps(name: str, side: Record) -> list[str]:
    """Where the seconds go, if the runs tell: medians of each step."""
    all_steps = [run["facts"]["steps"] for run in side["runs"] if "steps" in run["facts"]]
    if not all_steps:
        return []
    medians = {step: statistics.median(steps[step] for steps in all_steps) for step in all_steps[0]}
    table = [f"| {step} | {_time(seconds)} |" for step, seconds in medians.items()]
    return [f"| {name}: step | median |", "|---|---|", *table, ""]


def _figures(case: Record) -> list[str]:
    sides = {name: told for name, side in case["sides"].items() if (told := _told(side))}
    if not sides:
        return []
    heads = next(iter(sides.values()))
    table = [f"| {' | '.join([name, *told.values()])} |" for name, told in sides.items()]
    return [f"| {' | '.join([case['case'], *heads])} |", f"|{'---|' * (1 + len(heads))}", *table, ""]


def _told(side: Record) -> dict[str, str]:
    """Speed, where the runs count tokens, and medians of what they tell of their results."""
    facts = [run["facts"] for run in side["runs"]]
    told = {}
    if "tokens" in facts[0]:
        told["tokens/s"] = f"{facts[0]['tokens'] / side['seconds']['median']:,.0f}"
    for name in facts[0].get("told", {}):
        told[name] = f"{statistics.median(each['told'][name] for each in facts):.3f}"
    return told


def _facts(facts: Record) -> str:
    told = [f"{key.replace('_', ' ')} {_number(value)}" for key, value in facts.items() if key != "holds"]
    return f"{', '.join(told)}: {'yes' if facts['holds'] else '**NO**'}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}"


def _about(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    shown = [f"{name} {versions[name]}" for name in _SHOWN if name in versions]
    return (
        f"{record['repetitions']} repetitions on {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}); {', '.join(shown)}. `{record['command']}`\n"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f} ms"


def _bytes(count: float | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    update()
