"""Write the texts that the starter's evidence is collected from, and say where each comes from.

    python tools/evidence_texts.py PACKAGES OUT

PACKAGES holds four Debian packages and a wheel, as ``make evidence`` downloads them: python3.11-doc,
r-cran-janeaustenr, bible-kjv with bible-kjv-text, and exllamav3. OUT gets a .jsonl or .txt file for each text, and
SOURCES.md. All of it may be given away: see that file. About 300,000 tokens, the same from the same packages.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

# Characters of each: a quarter of the tokens is code and its description, another prose of two centuries ago.
ENCYCLOPEDIA, NOVEL, LIBRARY = 560_000, 40_000, 330_000
BOOKS = ("gen1:1-19:38", "psalm1:1-30:12", "mat1:1-10:42")
MANUAL = ("tutorial", "faq", "howto")
WIKI = "exllamav3/conversion/standard_cal_data/wiki.utf8"
_MARKUP = re.compile(r"^\.\. (?:_|index::|\w+:: *$|highlight|sectionauthor|moduleauthor|only|toctree).*$", re.M)
_ROLE = re.compile(r":[a-z:]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("python3.11-doc", "r-cran-janeaustenr", "bible-kjv", "bible-kjv-text"):
            package = _package(options.packages, f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
        articles = list(wikipedia(_package(options.packages, "exllamav3-*.whl"), ENCYCLOPEDIA))
        _write(options.out / "wikipedia.jsonl", [text for _, _, text in articles])
        _write(options.out / "austen.jsonl", novels(root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"))
        _write(options.out / "bible.jsonl", [verses(root, book) for book in BOOKS])
        _write(options.out / "python.jsonl", manual(root / "usr/share/doc/python3.11/html/_sources"))
    (options.out / "SOURCES.md").write_text(SOURCES + _titles(articles), encoding="utf-8")


def _package(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        sys.exit(f"{folder} holds no {pattern}; make evidence downloads it")
    return found[-1]


def _write(path: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(texts)} documents, {sum(map(len, texts)):,} characters")


def wikipedia(wheel: Path, size: int) -> Iterator[tuple[str, str, str]]:
    """Page id, title and text of the first articles that are more than a stub, up to so many characters."""
    with zipfile.ZipFile(wheel) as archive:
        whole = archive.read(WIKI).decode("utf-8")
    for match in re.finditer(r'<doc id="(\d+)" url="[^"]*" title="([^"]*)">\n(.*?)</doc>', whole, re.S):
        number, title, text = match[1], match[2], match[3].strip()
        if len(text) < 600:
            continue
        if size < len(text):
            return
        size -= len(text)
        yield number, title, text


def novels(database: Path) -> list[str]:
    """The beginning of each of the six novels, their lines joined to paragraphs.

    R keeps each as a vector of lines: behind four bytes of size a zlib stream, in it R's own serialisation.
    """
    data, found = database.read_bytes(), []
    while data:
        stream = zlib.decompressobj()
        raw, data = stream.decompress(data[4:]), stream.unused_data
        found.append(_paragraphs(_lines(raw), NOVEL))
    return found


def _lines(raw: bytes) -> list[str]:
    """A vector of strings (type 16) of strings (type 9), big-endian, after a header of its version."""

    def number(at: int) -> int:
        return int.from_bytes(raw[at : at + 4], "big", signed=True)

    at = 14
    if number(2) == 3:  # the native encoding stands in the header
        at += 4 + number(at)
    if number(at) & 0xFF != 16:
        sys.exit("janeaustenr's database holds something else than lines of text")
    count, at, lines = number(at + 4), at + 8, []
    for _ in range(count):
        size = number(at + 4)
        lines.append(raw[at + 8 : at + 8 + max(size, 0)].decode("utf-8"))
        at += 8 + max(size, 0)
    return lines


def _paragraphs(lines: list[str], size: int) -> str:
    text = "\n".join(line.rstrip() for line in lines)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n{2,}", text)]
    return "\n\n".join(part for part in paragraphs if part)[:size]


def verses(root: Path, book: str) -> str:
    """Chapters of the King James Version as running text."""
    command = [str(root / "usr/bin/bible"), "-p", str(root / "usr/lib"), "-d", "bible.data", "-f", book]
    said = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    chapters: dict[str, list[str]] = {}
    for line in said.splitlines():
        if match := re.match(r"(\w+?\d+):\d+ (.*)", line):
            chapters.setdefault(match[1], []).append(match[2].strip())
    return "\n\n".join(" ".join(chapter) for chapter in chapters.values())


def manual(sources: Path) -> list[str]:
    """Pages of Python's documentation as text, the marks of reStructuredText mostly taken out."""
    found, size = [], LIBRARY
    for part in MANUAL:
        for page in sorted((sources / part).glob("*.rst.txt")):
            text = _LINK.sub(r"\1", _ROLE.sub(r"\1", _MARKUP.sub("", page.read_text("utf-8"))))
            text = re.sub(r"\n{3,}", "\n\n", text.replace("``", "`")).strip()
            if 2000 < len(text) <= size:
                size -= len(text)
                found.append(text)
    return found


def _titles(articles: list[tuple[str, str, str]]) -> str:
    links = [f"[{title}](https://en.wikipedia.org/?curid={number})" for number, title, _ in articles]
    return "\n".join(f"- {link}" for link in links) + "\n"


SOURCES = """# Where the texts of the starter's evidence come from

`tokens.safetensors` holds passages of the following, as token ids, in which the starter's features fire most strongly;
`examples.safetensors` and `statistics.safetensors` beside each dictionary were computed from them. `make evidence` in
gemlens' repository makes them anew.

| text | what was changed | licence |
|---|---|---|
| Jane Austen, the beginnings of her six novels, as the R package janeaustenr 1.0.0 has them (Julia Silge, from Project Gutenberg) | lines joined to paragraphs, cut | public domain |
| The King James Version, parts of Genesis, Psalms and Matthew, as Debian's package bible-kjv-text 4.38 has it (Bible Retrieval System, Chip Chapin, "provided for unrestricted use") | verse numbers taken out, cut | public domain |
| The documentation of Python 3.11.2: tutorial, FAQ, HOWTOs. Copyright 2001-2023 Python Software Foundation; all rights reserved. As Debian's package python3.11-doc has it | marks of reStructuredText taken out, cut | [PSF License Version 2](https://docs.python.org/3.11/license.html); code in it also Zero-Clause BSD |
| Articles of the English Wikipedia, listed below, by its contributors, as the wheel of exllamav3 has them (calibration text) | cut into passages | [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/) |

All were cut into rows of 128 tokens. The passages of Wikipedia stay under CC BY-SA 4.0, those of Python's documentation
under the PSF's licence.

## Articles of Wikipedia

"""  # noqa: E501


if __name__ == "__main__":
    main()
