"""``gemlens`` with made-up passages instead of a dictionary's evidence, in a process of its own: to be killed."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

from gemlens.app import label_explain
from gemlens.app.cli import main
from label_sample import SMALL, Passages

if __name__ == "__main__":
    with (
        mock.patch.object(label_explain, "open_contexts", lambda *_: Passages()),
        mock.patch.object(label_explain, "chosen", lambda *_: SMALL),
    ):
        main(sys.argv[1:])
