"""Labels of one dictionary from Neuronpedia: the bulk export first, then the API for features that it lacks.

1. Each file of the export is stored in one transaction with the note that it is done, so that a kill at any moment
   loses at most the file being read, and nothing is ever stored twice.
2. Features without a row in the export's ``features`` are asked for, fifty at a time. One that has a row and no
   explanation has none: asking again would not help. (Unless a file of explanations was damaged.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gemlens.batched import ahead, batched
from gemlens.errors import AccessError, GemlensError, InputError, NetworkError, NotFoundError
from gemlens.records.labels import Counts, FeatureFacts, Label
from gemlens.scope import label_progress as progress
from gemlens.scope.label_names import Named, check_source
from gemlens.scope.labels import LabelStore, now
from gemlens.scope.neuronpedia import Batch, Row, Source, ask, batches, parse_source, rows_of

__all__ = ["SOURCE", "download"]

SOURCE = "neuronpedia"
_TOGETHER = 50
# So many failures in a row, and it is not the single feature that is at fault.
_HOPELESS = 3

Report = Callable[[str, int, int], None]
"""What is going on, steps done and steps to do."""


def download(
    store: LabelStore,
    dictionary: Named,
    *,
    neuronpedia: str | None = None,
    facts: bool = True,
    api: bool = True,
    again: bool = False,
    report: Report = lambda _said, _done, _total: None,
) -> Counts:
    """Store all labels that Neuronpedia has of a dictionary; called again, it goes on where it stopped.

    Args:
        neuronpedia: ``model/source``; the catalogue's unless given.
        facts: top tokens and largest activations as well, which ``feature_labels.json`` has.
        api: ask the HTTP API for features that the export lacks.
        again: from the start, to see what has come to be since.

    Raises:
        InputError: an id that is another dictionary's.
        NotFoundError: no id is known, or Neuronpedia has nothing under it.
        NetworkError, AccessError: it cannot be reached.
    """
    said = neuronpedia or dictionary.neuronpedia
    if said is None:
        raise NotFoundError(
            f"the catalogue knows no page of Neuronpedia for exactly {dictionary.key}; if there is one, name it with "
            "--neuronpedia-id MODEL/SOURCE"
        )
    source = parse_source(said)
    check_source(dictionary, str(source))
    store.declare(Named(dictionary.key, dictionary.release, dictionary.id, neuronpedia=said, width=dictionary.width))
    if again:
        progress.forget_done(store, dictionary.key)
    run = _Run(store, dictionary, source, report)
    listed = run.read_export("features") if facts else 0
    listed += run.read_export("explanations")
    if api:
        run.read_api(everything=not listed)
    elif not listed:
        raise _nothing(source)
    run.store.note_download(dictionary.key)
    return run.counts()


class _Run:
    """One go at one dictionary."""

    def __init__(self, store: LabelStore, dictionary: Named, source: Source, report: Report) -> None:
        self.store, self.dictionary, self.source, self.report = store, dictionary, source, report
        self.failed: set[int] = set()
        self.reasons: list[str] = []
        self.is_whole = True
        """No file of explanations was damaged: who has none in them has none."""

    def read_export(self, kind: str) -> int:
        """How many files it has; those that are in already are not fetched."""
        done = progress.done(self.store, self.dictionary.key)
        listed = batches(self.source, kind)
        new = [batch for batch in listed if _part(batch) not in done]
        self.report(kind, len(listed) - len(new), len(listed))

        def read(batch: Batch) -> tuple[list[Row], list[str]] | GemlensError:
            try:
                return rows_of(batch, self.source, width=self.dictionary.width)
            except (NetworkError, NotFoundError, AccessError) as error:
                return error

        for count, (batch, found) in enumerate(ahead(read, new), len(listed) - len(new) + 1):
            if isinstance(found, GemlensError):
                self._note(str(found))
                self.is_whole = self.is_whole and kind != "explanations"
            else:
                rows, wrong = found
                for reason in wrong:
                    self._note(f"left out: {reason}")
                self._keep(rows, _part(batch))
            self.report(kind, count, len(listed))
        return len(listed)

    def read_api(self, *, everything: bool) -> None:
        """Ask for the features that there is neither label nor fact of."""
        if self.dictionary.width is None:
            if everything:
                raise InputError(
                    f"{self.source} is not in Neuronpedia's export, and nothing says how many features "
                    f"{self.dictionary.key} has; name it as the catalogue does, or a folder with a config.json"
                )
            return
        known = set(self.store.features(self.dictionary.key))
        if self.is_whole:
            known |= set(progress.facts(self.store, self.dictionary.key))
        todo = [feature for feature in range(self.dictionary.width) if feature not in known]
        self.report("features that the export lacks", 0, len(todo))
        in_a_row = done = 0
        for part in batched(todo, _TOGETHER):
            try:
                answers = ask(self.source, part)
                in_a_row = 0
            except NetworkError as error:
                self._note(str(error))
                self.failed.update(part)
                in_a_row += 1
                if in_a_row == _HOPELESS:
                    self.failed.update(todo[done + len(part) :])
                    return
            else:
                if everything and not known and not any(answers.values()):
                    raise _nothing(self.source)
                nothing = {feature: FeatureFacts() for feature, row in answers.items() if row is None}
                self._keep([row for row in answers.values() if row is not None], None, nothing)
            done += len(part)
            self.report("features that the export lacks", done, len(todo))

    def counts(self) -> Counts:
        labels = self.store.features(self.dictionary.key)
        facts = progress.facts(self.store, self.dictionary.key)
        width = self.dictionary.width or max([*labels, *facts], default=-1) + 1
        failed = self.failed - set(labels)
        missing = width - len(labels) - len(failed)
        return Counts(len(labels), missing, len(failed), sum(labels.values()), tuple(self.reasons))

    def _keep(self, rows: Iterable[Row], part: str | None, nothing: dict[int, FeatureFacts] | None = None) -> None:
        key, when = self.dictionary.key, now()
        facts = {row.feature: row.facts for row in rows if row.facts is not None} | (nothing or {})
        with self.store.writing():
            self.store.add(
                Label(key, row.feature, each.text, SOURCE, method=each.method, model=each.model, created=when)
                for row in rows
                for each in row.explanations
            )
            progress.add_facts(self.store, key, facts)
            if part is not None:
                progress.mark_done(self.store, key, part)

    def _note(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)


def _nothing(source: Source) -> NotFoundError:
    return NotFoundError(f"Neuronpedia has nothing under {source}; look its name up at https://www.neuronpedia.org")


def _part(batch: Batch) -> str:
    return f"{batch.key} {batch.etag}"
