"""The words for a command line that Typer could not read.

Usage errors of Typer and of the Click inside it share no public class, so their parts are looked for, not their type.
"""

from __future__ import annotations

from typing import Any

__all__ = ["is_usage_error", "wording"]


def is_usage_error(error: Exception) -> bool:
    return hasattr(error, "format_message")


def wording(error: Any, arguments: list[str]) -> str:
    """One line: what was wrong, the value, and where to read on."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    value = _value(error)
    if value is not None and repr(value) not in said:
        said += f", got {value!r}"
    context = getattr(error, "ctx", None)
    if context is not None and (hint := _hint(error, context)):
        said += f"; {hint}"
    path = context.command_path if context is not None else " ".join(["gemlens", *arguments[:1]])
    return f"{said}; see {path} --help"


def _value(error: Any) -> Any:
    """What was given: newer Typers keep it in pydantic's error, older ones say it themselves."""
    cause = error.__cause__
    details = cause.errors() if cause is not None and hasattr(cause, "errors") else []
    return details[0].get("input") if details else None


def _hint(error: Any, context: Any) -> str:
    """Two slips that everybody makes once: the prompt without its option, the options without their command."""
    option = getattr(error, "option_name", None)
    commands = getattr(context.command, "commands", None)
    if option is None and commands is None and "unexpected extra argument" in error.format_message():
        return "a text goes with --prompt, in quotes"
    if option is not None and commands:
        having = [name for name, command in commands.items() if any(option in each.opts for each in command.params)]
        if having:
            return f"name the command first: {context.command_path} {having[0]} {option} …"
    return ""
