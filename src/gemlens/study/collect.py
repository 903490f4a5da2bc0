"""Evidence of what features mean: a text read once, with many dictionaries, and what it shows of each feature on disk.

1. Rows of text go through the model, ``TOGETHER`` at a time, and what is read through the dictionaries.
2. What fires is counted: examples (``strongest``), histograms, positions and pairs (``firing``), in memory that does
   not grow with the text. Now and then everything is saved; a run that was killed goes on there.
3. At the end the text is read again, without the model, for the rows that examples refer to, and each dictionary's
   decoder is read for what it says by itself (``directions``).

    FOLDER/collecting.safetensors                        while it goes on
    FOLDER/tokens.safetensors                            the sequences, where there are several dictionaries
    FOLDER/resid_post/layer_12_…/examples.safetensors    and statistics.safetensors

BOS is left out of everything. The same command writes the same bytes, however often it was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemlens.batched import batched
from gemlens.data.checkpoint import check_same, read_checkpoint, write_checkpoint
from gemlens.data.corpus import Text, pack
from gemlens.data.mix import mixed
from gemlens.errors import InputError
from gemlens.files import check_folder
from gemlens.lm.gemma import Model
from gemlens.lm.stream import TOGETHER
from gemlens.lm.text import encode_documents
from gemlens.records.collected import Collected
from gemlens.scope.examples import EXAMPLES, write_examples
from gemlens.scope.features import Features
from gemlens.scope.sae import SAE
from gemlens.scope.slices import write_safetensors
from gemlens.scope.statistics import STATISTICS, write_statistics
from gemlens.study.decoder_rows import NEIGHBOUR_WIDTH, directions
from gemlens.study.evidence import Counted, compacted, examples_of, kept_rows, statistics_of
from gemlens.study.evidence_files import TOKENS, about_of, files_of, is_complete, metadata_of, paths_of
from gemlens.study.finder import Passes, finder
from gemlens.study.firing import COACTIVATION_WIDTH
from gemlens.study.fit_check import check_fit

__all__ = ["COLLECTING", "collect_features"]

COLLECTING = "collecting.safetensors"
SAVE_SECONDS = 60.0
_SAVING = 50
"""Time between two savings, at least so many times as long as one takes."""
_RUN = "*"
"""Among the parts of a checkpoint, which have the dictionaries' paths: how far the reading is."""


def collect_features(
    model: Model,
    dictionaries: Sequence[SAE],
    texts: Sequence[Text],
    folder: Path,
    *,
    tokens: int | None = None,
    row_length: int = 128,
    examples: int = 32,
    quantiles: int = 0,
    seed: int = 0,
    logits: bool = True,
    compact: bool = False,
    passes: Passes | None = None,
    report: Callable[[int, int | None], None] = lambda _done, _total: None,
    report_logits: Callable[[str, int, int], None] = lambda _path, _done, _total: None,
) -> Collected:
    """Write ``examples.safetensors`` and ``statistics.safetensors`` of each dictionary, or go on where a run stopped.

    Args:
        texts: documents, shuffled by ``seed`` and packed into rows of ``row_length`` tokens, BOS first.
        tokens: to read, rounded up to whole rows; all of the texts where None. They may end before.
        examples: kept a feature: its strongest activations, of equal ones the first seen.
        quantiles: how many of them to spread over the quantiles of its activations instead.
        logits: also which tokens each feature promotes: a product with the head, most of what comes after reading.
        compact: float16 and small integers, for evidence that is shipped.
        passes: finds the features of many batches in order, by other means than ``finder`` in this process.
        report: called with tokens done and to do, the latter None where nobody knows.
        report_logits: called with a dictionary's path, features done and features to do.

    Raises:
        InputError: numbers out of range, dictionaries of one name, text for less than a row, or that is no text; a
            folder with evidence of something else.
        MismatchError: a dictionary does not fit the model.
        OutputError: the folder cannot be written.
        WeightsError: activations that are not finite, or a damaged checkpoint.
    """
    _check(model, row_length, examples, quantiles, tokens)
    paths = paths_of(dictionaries)
    for dictionary in dictionaries:
        check_fit(model, dictionary)
    options = {
        "row_length": row_length, "examples": examples, "quantiles": quantiles > 0, "spread": quantiles,
        "seed": seed, "logits": logits, "compact": compact, "tokens_asked": tokens,
    }  # fmt: skip
    job = _Job(model, dictionaries, paths, texts, check_folder(folder), about=about_of(model, texts, options))
    if job.begin():
        return job.collected()
    per_row = row_length - 1
    rows_asked = None if tokens is None else -(-tokens // per_row)
    job.count(passes or (lambda batches: map(finder(model, dictionaries), batches)), rows_asked, report)
    job.write(rows_asked, report_logits)
    return job.collected()


class _Job:
    """One run: what it counts, and its files."""

    def __init__(
        self,
        model: Model,
        dictionaries: Sequence[SAE],
        paths: list[str],
        texts: Sequence[Text],
        folder: Path,
        *,
        about: dict[str, Any],
    ) -> None:
        self.model, self.dictionaries, self.paths, self.texts, self.folder = model, dictionaries, paths, texts, folder
        self.about = about
        self.length = int(about["row_length"])
        self.rows = 0
        self.is_read = False
        self.counted = [
            Counted(
                dictionary.width,
                about["examples"],
                about["spread"],
                seed=about["seed"],
                coactivation=dictionary.width <= COACTIVATION_WIDTH,
                device=model.device,
            )
            for dictionary in dictionaries
        ]

    def begin(self) -> bool:
        """Take up what a killed run left; True where everything is there."""
        for place in {self.folder, *(self.folder / path for path in self.paths)}:
            for left_over in place.glob(".gemlens-*.tmp"):  # of a run that was killed while it wrote
                left_over.unlink()
        asked = self.about | {"dictionaries": self._names()}
        saved = read_checkpoint(self.folder / COLLECTING)
        if saved is None:
            return is_complete(files_of(self.folder, self.paths), self.about)
        check_same(self.folder / COLLECTING, saved.about, asked)
        for path, counted in zip(self.paths, self.counted, strict=True):
            counted.load(saved.parts[path])
        self.rows, self.is_read = int(saved.parts[_RUN]["rows"]), bool(saved.parts[_RUN]["is_read"])
        return False

    def count(self, passes: Passes, rows_asked: int | None, report: Callable[[int, int | None], None]) -> None:
        """Read the texts from where the counts stand."""
        per_row = self.length - 1
        total = None if rows_asked is None else rows_asked * per_row
        if not self.is_read:
            saved, cost = time.monotonic(), 0.0
            rows = islice(self._text(), self.rows, rows_asked)
            batches = (np.stack(group) for group in batched(rows, TOGETHER))
            for found in passes(batches):
                self._add(found)
                report(self.rows * per_row, total)
                if time.monotonic() - saved >= max(SAVE_SECONDS, _SAVING * cost):
                    cost = -time.monotonic()
                    self._save()
                    saved = time.monotonic()
                    cost += saved
            if not self.rows:
                raise InputError(f"the text fills no row of {self.length} tokens; give more, or ask for shorter rows")
            self.is_read = True
            self._save()

    def _add(self, found: Sequence[Features]) -> None:
        device = self.model.device
        rows = len(found[0]) // (self.length - 1)
        position = torch.arange(1, self.length, device=device)
        row = torch.arange(self.rows, self.rows + rows, device=device)
        places = (row[:, None] * self.length + position).flatten()
        thirds = ((position - 1) * 3 // (self.length - 1)).repeat(rows)
        for counted, features in zip(self.counted, found, strict=True):
            indptr, ids = features.indptr.to(device), features.ids.to(device)
            counted.add(Features(indptr, ids, features.values.to(device).float(), features.width), places, thirds)
        self.rows += rows

    def write(self, rows_asked: int | None, report: Callable[[str, int, int], None]) -> None:
        """Write all files, the checkpoint's going last."""
        chosen = [counted.examples() for counted in self.counted]
        used = [(places[places >= 0] // self.length).unique() for _, places in chosen]
        wanted = torch.cat(used).unique().cpu().numpy() if sum(map(len, used)) else np.zeros(1, dtype=np.int64)
        tokens = kept_rows(islice(self._text(), rows_asked), wanted)
        about = self.about | {"tokens": self.rows * (self.length - 1)}
        shared = len(self.paths) > 1
        if shared:
            write_safetensors(self.folder / TOKENS, {"tokens": tokens}, {"gemlens": json.dumps(about, sort_keys=True)})
        for path, dictionary, counted, (values, places) in zip(
            self.paths, self.dictionaries, self.counted, chosen, strict=True
        ):
            if all((self.folder / path / name).exists() for name in (EXAMPLES, STATISTICS)):
                continue  # written before the run was killed: a new one begins in a folder without
            found = examples_of(values, places, counted.firing, row_length=self.length, rows=wanted)
            counts = statistics_of(counted.firing)
            said = directions(
                self.model,
                dictionary,
                logits=10 if about["logits"] else 0,
                report=lambda done, total, path=path: report(path, done, total),  # type: ignore[misc]
            )
            for name, tensor in said.items():
                (found if name.endswith(("_tokens", "_logits")) else counts)[name] = tensor
            if not shared:
                found["tokens"] = tokens
            if about["compact"]:
                found, counts = compacted(found), compacted(counts)
            (self.folder / path).mkdir(parents=True, exist_ok=True)
            of_it = about | {"dictionary": path}
            up = "/".join([".."] * len(PurePosixPath(path).parts) + [TOKENS])
            write_examples(self.folder / path / EXAMPLES, found, about=of_it, tokens_file=up if shared else None)
            write_statistics(self.folder / path / STATISTICS, counts, about=of_it)
        (self.folder / COLLECTING).unlink()

    def collected(self) -> Collected:
        notes = [
            f"{path} has {dictionary.width:,} features: {what}"
            for path, dictionary in zip(self.paths, self.dictionaries, strict=True)
            for most, what in (
                (COACTIVATION_WIDTH, f"which fire together is counted of {COACTIVATION_WIDTH:,} at most"),
                (NEIGHBOUR_WIDTH, f"neighbours are looked for among {NEIGHBOUR_WIDTH:,} at most"),
            )
            if dictionary.width > most
        ]
        about, sequences = metadata_of(self.folder / self.paths[0] / EXAMPLES)
        if len(self.paths) > 1:
            _, sequences = metadata_of(self.folder / TOKENS)
        size = sum(file.stat().st_size for file in files_of(self.folder, self.paths))
        return Collected(self.folder, tuple(self.paths), int(about["tokens"]), sequences, size, tuple(notes))

    def _text(self) -> Iterator[NDArray[np.int64]]:
        def encode(group: list[str]) -> list[list[int]]:
            return encode_documents(self.model, group)

        return pack(mixed(self.texts, self.about["seed"]), encode, bos=self.model.bos, length=self.length)

    def _save(self) -> None:
        parts = {path: counted.state() for path, counted in zip(self.paths, self.counted, strict=True)}
        here: dict[str, Any] = {"rows": self.rows, "is_read": int(self.is_read)}
        write_checkpoint(self.folder / COLLECTING, self.about | {"dictionaries": self._names()}, {**parts, _RUN: here})

    def _names(self) -> list[dict[str, Any]]:
        return [
            {"path": path, "release": each.info.release, "revision": each.info.revision, "width": each.width}
            for path, each in zip(self.paths, self.dictionaries, strict=True)
        ]


def _check(model: Model, row_length: int, examples: int, quantiles: int, tokens: int | None) -> None:
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens {tokens}: take 1 or more")
    if not 4 <= row_length <= model.context:
        raise InputError(f"row length {row_length}: take 4 to {model.context} tokens, BOS among them")
    if examples < 1:
        raise InputError(f"examples {examples}: keep 1 or more a feature")
    if not 0 <= quantiles <= examples:
        raise InputError(f"quantiles {quantiles}: of {examples} examples, spread 0 to {examples} over the quantiles")
