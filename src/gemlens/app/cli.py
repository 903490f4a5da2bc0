"""The command line: ``gemlens analyze``, ``fidelity``, ``catalog``, ``circuit``, ``train``, ``collect``, ``export``.

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
from gemlens.app.ablate import ablate
from gemlens.app.analyze import analyze
from gemlens.app.attribute import attribute
from gemlens.app.catalog import catalog
from gemlens.app.choices import choices
from gemlens.app.circuit import circuit
from gemlens.app.collect import collect
from gemlens.app.console import abandon_stdout
from gemlens.app.contrast import contrast
from gemlens.app.encode import encode
from gemlens.app.export import export
from gemlens.app.feature import feature
from gemlens.app.fidelity import fidelity
from gemlens.app.find import find
from gemlens.app.labels import labels
from gemlens.app.lens import lens
from gemlens.app.steer import steer
from gemlens.app.train import train
from gemlens.app.usage import is_usage_error, wording
from gemlens.errors import GemlensError

__all__ = ["app", "main"]

_INTERRUPTED = 130

app = typer.Typer(
    help="A microscope for Gemma 2 and 3: which features of a sparse autoencoder fire on each token.",
    add_completion=False,
    rich_markup_mode=None,
    # A traceback with the values of local variables would show tokens and prompts to whoever reads the bug report.
    pretty_exceptions_enable=False,
    # Underscores work wherever hyphens do.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gemlens {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(  # noqa: ARG001 - handled by its callback
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(short_help="Which features fire on each token of a text.")(analyze)
app.command(short_help="What a feature means: its strongest examples, what it writes.")(feature)
app.command(short_help="What predictions lose when features are taken out.")(ablate)
app.command(short_help="What a model says with features turned up and down.")(steer)
app.command(short_help="What each feature does to a logit, a loss or another feature.")(attribute)
app.command(short_help="Which tokens features speak for; what each layer predicts.")(lens)
app.command(short_help="How well a dictionary stands in for what it reads.")(fidelity)
app.command(short_help="Multiple choice: what fires for right answers and not for wrong ones.")(choices)
app.command(short_help="What fires for one set of texts and not for another.")(contrast)
app.command(short_help="Which dictionaries are published, under which names.")(catalog)
app.command(short_help="Which features a phrase leads to, by activation and by label.")(find)
app.command(short_help="Dictionaries of your own: SAEs, transcoders, CLTs.")(train)
app.command(short_help="Write dictionaries again, as float32, bfloat16 or int8.")(export)
app.command(short_help="Saved activations of any tool to sparse features.")(encode)
app.add_typer(circuit, name="circuit", short_help="What the next token is made of: an attribution graph.")
app.add_typer(labels, name="labels", short_help="What features are called: download, search, write, explain, score.")
app.add_typer(collect, name="collect", short_help="What a model computes over a lot of text, kept on disk.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    # Before anything imports the hub's client or transformers: quiet, and nothing sent that nobody asked for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from gemlens.hub import load_dotenv

    load_dotenv(Path())
    warnings.showwarning = _show_warning
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    """The exit code; SystemExit passes (Typer's way out of a broken pipe)."""
    try:
        result = app(args=arguments, prog_name="gemlens", standalone_mode=False)
    except GemlensError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", code=_INTERRUPTED)
    except OSError as error:
        abandon_stdout()
        return _fail(f"the system refused: {error}; free some space, or read and write elsewhere")
    except Exception as error:
        if is_usage_error(error):
            return _fail(wording(error, arguments))
        if _out_of_memory(error):
            return _fail(f"out of memory ({error}); shorten the prompt, or take a smaller model, dictionary or dtype")
        raise
    if result == _INTERRUPTED:  # newer Typers turn Ctrl-C into this themselves
        return _fail("interrupted", code=_INTERRUPTED)
    return result if isinstance(result, int) else 0


def _out_of_memory(error: Exception) -> bool:
    """By name, and by the words of torch's CPU allocator: torch may not be imported, nor needs to be for this."""
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error)


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
