"""Run the command line in this process, and small models and dictionaries on disk for it to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gemlens.app.cli import main
from tiny import published_config, random_tensors, tiny_model_folder, write_dictionary

ID = "resid_post/layer_2_width_40_l0_small"
REPORT = "gemma_scope_2_report"
ROOM = {"max_position_embeddings": 256}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class World(NamedTuple):
    """A model folder named as Google's, and a release whose dictionaries fit it."""

    model: Path
    release: Path

    def arguments(self, *more: object, sae_id: str = ID) -> list[str]:
        """Of a run that works and is quick."""
        names = ["--model-id", self.model, "--sae-release", self.release, "--sae-id", sae_id]
        return ["analyze", *map(str, [*names, "--max-new-tokens", 0, *more])]


def make_world(root: Path) -> World:
    model = tiny_model_folder(root / "gemma-3-270m-it", chat=True, **ROOM)
    add_dictionary(root / "scope", ID)
    add_dictionary(root / "scope", "resid_post/layer_5_width_40_l0_small", layer=5)
    return World(model, root / "scope")


def add_dictionary(release: Path, sae_id: str, *, layer: int = 2, d_in: int = 16, **config: Any) -> Path:
    """Write a dictionary of 40 features in Gemma Scope 2's layout; ``config`` changes its ``config.json``."""
    return write_dictionary(release / sae_id, random_tensors(d_in, 40, seed=layer), published_config(layer, **config))


def run(capsys: Any, *arguments: object) -> Ran:
    """``gemlens`` in this process."""
    capsys.readouterr()
    code: Any = None
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    return Ran(code, *capsys.readouterr())


def spawn(*arguments: object, code: str = "from gemlens.app.cli import main; main()", **settings: Any) -> Ran:
    """``gemlens`` in a process of its own; ``env`` adds to the environment."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": 120, "encoding": "utf-8"}
        | settings
        | {"env": os.environ | settings.get("env", {})},
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def assert_refused(ran: Ran, *words: str) -> None:
    """One line on standard error that holds all of ``words``, nothing on standard output, exit code 2."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, f"{word!r} not in {ran.err!r}"


def report(folder: Path = Path("outputs")) -> dict[str, Any]:
    return json.loads((folder / f"{REPORT}.json").read_text("utf-8"))


def everything_in(folder: Path) -> list[str]:
    """Every file and folder below, hidden ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
