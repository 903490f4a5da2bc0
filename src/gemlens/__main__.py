"""``python -m gemlens``, and ``torchrun -m gemlens``: the command line."""

from __future__ import annotations

from gemlens.app.cli import main

if __name__ == "__main__":
    main()
