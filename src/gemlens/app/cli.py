"""The command line: ``gemlens analyze`` and ``gemlens fidelity``.

Every mistake of the user's ends in one line on standard error and exit code 2. Options are checked before torch is
imported, which takes seconds.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import typer

from gemlens import __version__
from gemlens.app.analyze import analyze
from gemlens.app.fidelity import fidelity
from gemlens.errors import GemlensError

__all__ = ["app", "main"]

app = typer.Typer(
    help="A microscope for Gemma 2 and 3: which features of a sparse autoencoder fire on each token.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gemlens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command()(analyze)
app.command()(fidelity)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    # Before anything imports the hub's client or transformers: quiet, and nothing sent that nobody asked for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from gemlens.hub import load_dotenv

    load_dotenv(Path.cwd())
    warnings.showwarning = _show_warning
    sys.exit(_run(_hyphenated(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        result = app(args=arguments, standalone_mode=False)
    except GemlensError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", code=130)
    except BrokenPipeError:  # `gemlens analyze … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Usage errors of Typer and of the Click inside it share no public class; both format themselves.
        if not hasattr(error, "format_message"):
            raise
        if not str(error):  # no arguments at all: the help has been printed
            return 0
        return _fail(f"{_one_line(error.format_message())}; see gemlens --help")
    return result if isinstance(result, int) else 0


def _hyphenated(arguments: list[str]) -> list[str]:
    """``--max_new_tokens=3`` -> ``--max-new-tokens=3``: underscores work wherever hyphens do."""
    changed = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return changed + arguments[position:]
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        changed.append(argument)
    return changed


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Ours as a line; those of libraries are for developers (``python -W``)."""
    if category is UserWarning:
        print(f"warning: {_one_line(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    main()
