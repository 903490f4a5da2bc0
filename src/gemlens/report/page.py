"""A page in one file: template, style, script and data together, and a policy that lets nothing else in.

1. The template is rendered with autoescape; data for the script goes in as JSON that no HTML parser can leave.
2. Style and script are inlined and named by their sha256 in a Content-Security-Policy of ``default-src 'none'``:
   the page makes no request, and a script that slipped in with the data would not run.
3. Characters that HTML or UTF-8 cannot carry (NUL, lone surrogates) become U+FFFD.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

__all__ = ["render"]

# The parser's own whitespace aside, control characters are errors in HTML; CR would silently become LF.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029\x7f"} | {
    code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)
}


def render(
    name: str,
    *,
    facts: Sequence[tuple[str, str]],
    data: object = None,
    also: Sequence[str] = (),
    scripts: Sequence[str] = (),
    **context: Any,
) -> str:
    """Render ``templates/<name>.html.j2``, which extends ``page.html.j2``.

    Style and script are ``static/page.css`` and ``.js``, then ``<name>.css`` and ``.js`` where there are such.

    Args:
        also: further styles and scripts, by their names in ``static``.
        facts: names and values for the footer: what made it.
        data: for the script, which finds it as JSON.
        scripts: files of ``static`` that go before ``<name>.js``, in this order, into the one script of the page: each
            leaves one name for those behind it. Modules would have to be fetched, which a page from a file may not.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gemlens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join(_static(f"{part}.css") for part in ("page", name, *also))
    script = "".join(map(_static, ("page.js", *scripts, f"{name}.js", *(f"{each}.js" for each in also))))
    html = environment.get_template(f"{name}.html.j2").render(
        policy=(
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),
        script=Markup(script),
        data=None if data is None else Markup(_embed(data)),
        facts=facts,
        **context,
    )
    return _UNFIT.sub("\ufffd", html)


def _static(name: str) -> str:
    file = resources.files("gemlens.report") / "static" / name
    return file.read_text("utf-8") if file.is_file() else ""


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _embed(data: object) -> str:
    """Return JSON without any character that means something to an HTML parser or a line to a script parser."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_JSON_ESCAPES)
