"""Time gemlens beside its peers: make bench, or make bench ROWS="encode decode"

Every repetition is a fresh process with a new seed, and new inputs by it; it warms up on others. The sides of a case
take turns, and who is first alternates. This process only waits. Results go to benchmarks/results/ROW.json and from
there to docs/performance.md; with fewer repetitions than 3 they are printed only.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import page
from child import cases
from machine import machine, versions
from timing import Case, summarise

HERE = Path(__file__).parent
REPETITIONS = 5
ENOUGH = 3
"""For results to be kept: a median that one odd run does not move."""


def main() -> None:
    there = sorted(path.stem for path in (HERE / "rows").glob("[!_]*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(there)}; all of them if none is named")
    parser.add_argument("--repeat", type=int, default=REPETITIONS, help="fewer than 3, to try a row, write nothing")
    parser.add_argument(
        "--case",
        default="",
        metavar="WORDS",
        help="time the cases with these words in their names; others stay as kept",
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(there)):
        parser.error(f"no row is called {unknown[0]}; there are {', '.join(there)}")
    different = []
    for row in options.rows or there:
        record = run_row(row, options.repeat, options.case)
        different += [
            f"{row}: {each['case']}" for each in record["cases"] if not each.get("same", {}).get("holds", True)
        ]
        if options.repeat >= ENOUGH and record["cases"]:
            page.write_whole(page.RESULTS / f"{row}.json", json.dumps(record, indent=1) + "\n")
    page.update()
    if different:
        sys.exit(f"gemlens and a peer disagree: {'; '.join(different)}")


def run_row(row: str, repeat: int, words: str = "") -> dict[str, Any]:
    print(f"\n{row}", flush=True)
    first_seed = secrets.randbelow(1 << 30)
    kept = _kept(row, repeat) if words else {}
    if not any(words in case.name for case in cases(row)):
        sys.exit(f"no case of {row} is called by {words!r}; there are {', '.join(case.name for case in cases(row))}")
    found = [
        each
        for case in cases(row)
        if (each := run_case(row, case, first_seed, repeat) if words in case.name else kept.get(case.name))
    ]
    return {
        "row": row,
        "command": f"make bench ROWS={row}",
        "repetitions": repeat,
        "machine": machine(),
        "versions": versions(),
        "cases": found,
    }


def _kept(row: str, repeat: int) -> dict[str, Any]:
    """Cases of the row's file, by name: of this machine, and of as many repetitions."""
    file = page.RESULTS / f"{row}.json"
    record = json.loads(file.read_text("utf-8")) if file.exists() else {"cases": []}
    if record["cases"] and (record["machine"], record["repetitions"]) != (machine(), repeat):
        sys.exit(f"{row} was measured on another machine or {record['repetitions']} times; leave out --case")
    return {case["case"]: case for case in record["cases"]}


def run_case(row: str, case: Case, first_seed: int, repeat: int) -> dict[str, Any] | None:
    """None where gemlens' own side cannot run."""
    sides = list(case.sides)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repetition in range(min(repeat, case.repetitions or repeat)):
        for side in sides[:: -1 if repetition % 2 else 1]:
            if side not in runs:
                continue
            seed = first_seed + repetition
            run = {"seed": seed} | child(row, case.name, side, seed)
            if "absent" in run:
                print(f"  {case.name}: {side} is left out: {run['absent']}", flush=True)
                if side == sides[0]:
                    return None
                del runs[side]
            else:
                runs[side].append(run)
    found = summarise(case, runs)
    if case.same is not None:
        found["same"] = child(row, case.name, "same", first_seed)
    print("\n".join(f"  {line}" for line in page.lines(found)), flush=True)
    return found


def child(row: str, case: str, side: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "child.py"), row, case, side, str(seed)]
    # Nothing here is on the hub; a library that looks there would time the network.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{row}, {case}, {side}, seed {seed} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
