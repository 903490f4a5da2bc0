"""``gemlens labels explain``, ``score`` and ``auto``: labels for many features, and how well they hold.

Each feature is stored as soon as it is done, so that the same command goes on after a stop.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gemlens.app.console import busy, notes, tell
from gemlens.app.label_evidence import features_of, open_contexts
from gemlens.app.label_options import LabelIdOption, LabelReleaseOption, chosen
from gemlens.app.measuring import progress
from gemlens.errors import AccessError, GemlensError, InputError, NetworkError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from gemlens.records.labels import Label, Score
    from gemlens.scope.label_names import Named
    from gemlens.scope.labels import LabelStore
    from gemlens.study.contexts import Contexts
    from gemlens.study.label_scores import Ask

__all__ = ["auto", "explain", "score"]

_CONTEXTS, _LEAST = 20, 4


class Method(StrEnum):
    words = "words"
    tokens = "tokens"
    detection = "detection"
    fuzzing = "fuzzing"


_JUDGED = (Method.detection, Method.fuzzing)
FeaturesOption = Annotated[
    str | None, typer.Option("--features", help="Which, as 3,10-20.  [default: all]", metavar="LIST")
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Server that speaks OpenAI's chat completions, as http://localhost:11434/v1. The key is OPENAI_API_KEY.  "
        "[default: OPENAI_BASE_URL]",
        metavar="URL",
    ),
]
JudgeOption = Annotated[str | None, typer.Option("--llm", help="Name of the endpoint's model.", metavar="NAME")]
VocabularyOption = Annotated[
    str | None,
    typer.Option(
        "--model-id", help="Model whose vocabulary reads the evidence.  [default: what it says]", metavar="MODEL"
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds for one answer.", metavar="FLOAT")]
ThreadsOption = Annotated[int, typer.Option("--parallel", help="Questions at a time.", metavar="INT")]


def explain(
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    features: FeaturesOption = None,
    endpoint: EndpointOption = None,
    llm: JudgeOption = None,
    model_id: VocabularyOption = None,
    timeout: TimeoutOption = 120.0,
    parallel: ThreadsOption = 4,
    score: Annotated[bool, typer.Option("--score", help="Score each by detection and fuzzing as well.")] = False,
) -> None:
    """Let a language model read each feature's examples and say what it is. Stopped, the same command goes on."""
    from gemlens.study.explain import METHOD
    from gemlens.study.explain import explain as written

    dictionary = chosen(sae_release, sae_id)
    ask, name = _endpoint(endpoint, llm, timeout, parallel)
    console = notes()
    contexts = _contexts(console, dictionary, model_id)

    def work(feature: int) -> _Done:
        label = written(dictionary.key, feature, contexts, ask, source="gemlens", model=name)
        if label is None or not score:
            return _Done(label)
        return _scored(label, contexts, list(_JUDGED), ask, name)

    with _store(dictionary) as store:
        todo = features_of(features, contexts.width)
        known = store.of(dictionary.key, todo)
        mine = {f for f, every in known.items() if any(e.method == METHOD and e.model == name for e in every)}
        _each(console, store, todo, mine, work, parallel, f"Asking {name}", "a label")


def score(
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    features: FeaturesOption = None,
    method: Annotated[
        list[Method] | None,
        typer.Option(
            help="words and tokens need no model; detection and fuzzing need --endpoint; repeat it.  "
            "[default: words, tokens, and with an endpoint all]",
            metavar="NAME",
        ),
    ] = None,
    endpoint: EndpointOption = None,
    llm: JudgeOption = None,
    model_id: VocabularyOption = None,
    timeout: TimeoutOption = 120.0,
    parallel: ThreadsOption = 4,
) -> None:
    """Hold each feature's label against passages on which it fires and others: areas under the ROC curve."""
    from gemlens.records.labels import best_label

    dictionary = chosen(sae_release, sae_id)
    given = endpoint or os.environ.get("OPENAI_BASE_URL")
    methods = method or [Method.words, Method.tokens, *(_JUDGED if given else ())]
    judged = [each for each in methods if each in _JUDGED]
    if judged and not given:
        raise InputError(f"--method {judged[0]} needs a language model; name a server with --endpoint")
    ask, name = _endpoint(endpoint, llm, timeout, parallel) if judged else (None, None)
    console = notes()
    contexts = _contexts(console, dictionary, model_id)
    with _store(dictionary) as store:
        known = store.of(dictionary.key, features_of(features, contexts.width))
        if not known:
            raise NotFoundError(
                f"no label of {dictionary.key} is stored to be scored; get some: gemlens labels download"
            )
        shown = {feature: best for feature, every in known.items() if (best := best_label(every))}
        missing = {feature: _missing(label, methods, name) for feature, label in shown.items()}

        def work(feature: int) -> _Done:
            done = _scored(shown[feature], contexts, missing[feature], ask, name)
            # Without a new score there is nothing to store.
            return done if done.label and done.label.scores else _Done(None, done.reason)

        done = {feature for feature, left in missing.items() if not left}
        _each(console, store, list(shown), done, work, parallel, "Scoring", "a score")


def auto(
    sae_release: LabelReleaseOption = None,
    sae_id: LabelIdOption = None,
    features: FeaturesOption = None,
    model_id: VocabularyOption = None,
) -> None:
    """Label features by their top tokens and the words around them, without any model; marked as automatic."""
    from gemlens.study.auto_labels import METHOD, auto_label

    dictionary = chosen(sae_release, sae_id)
    console = notes()
    contexts = _contexts(console, dictionary, model_id)
    with _store(dictionary) as store:
        todo = features_of(features, contexts.width)
        known = store.of(dictionary.key, todo)
        mine = {feature for feature, every in known.items() if any(each.method == METHOD for each in every)}

        def work(feature: int) -> _Done:
            return _Done(auto_label(dictionary.key, feature, contexts))

        _each(console, store, todo, mine, work, 1, "Labelling", "a label", together=256)


class _Done(NamedTuple):
    """What came of one feature."""

    label: Label | None
    reason: str | None = None
    """What failed, though there may be a label, or some of its scores."""


def _scored(label: Label, contexts: Contexts, methods: Iterable[Method], ask: Ask | None, model: str | None) -> _Done:
    """The label with its new scores only; a way that fails leaves the others' scores standing."""
    from gemlens.scope.labels import now
    from gemlens.study import label_scores as scores
    from gemlens.study.contexts import spread

    firing = spread(contexts.firing(label.feature), _CONTEXTS)
    silent = contexts.silent(label.feature, _CONTEXTS)
    judge: dict[str, Any] = {"ask": ask, "model": model, "seed": label.feature}
    ways: dict[Method, Callable[[], Score]] = {
        Method.words: lambda: scores.by_words(label.text, firing, silent),
        Method.tokens: lambda: scores.by_tokens(firing, silent),
        Method.detection: lambda: scores.detection(label.text, firing, silent, **judge),
        Method.fuzzing: lambda: scores.fuzzing(label.text, firing, **judge),
    }
    made: list[Score] = []
    reason = None
    if min(len(firing), len(silent)) >= _LEAST:
        for method in methods:
            try:
                made.append(dataclasses.replace(ways[method](), created=now()))
            except (AccessError, NotFoundError):
                raise
            except (InputError, NetworkError) as error:
                reason = reason or f"{method}: {error}"
    return _Done(dataclasses.replace(label, scores=tuple(made)), reason)


def _missing(label: Label, methods: list[Method], model: str | None) -> list[Method]:
    """What the label has no score by yet: of a judge, this judge's."""
    have = {(each.method, each.model) for each in label.scores}
    return [each for each in methods if (each.value, model if each in _JUDGED else None) not in have]


def _each(
    console: Console,
    store: LabelStore,
    todo: list[int],
    done: set[int],
    work: Callable[[int], _Done],
    threads: int,
    what: str,
    result: str,
    *,
    together: int = 1,
) -> None:
    """Store what ``work`` makes of each feature, ``together`` at a time; say what it came to.

    Raises:
        GemlensError: some failed; all others are stored.
    """
    from gemlens.study.explain import each_feature

    left = [feature for feature in todo if feature not in done]
    if done:
        tell(console, f"{len(done):,} of {len(todo):,} are there already")
    waiting: list[Label] = []
    found, missing, failed = len(todo) - len(left), 0, {}
    try:
        with progress(console) as show:
            for count, (feature, made) in enumerate(each_feature(left, work, threads=threads), len(done) + 1):
                label, reason = (None, str(made)) if isinstance(made, GemlensError) else made
                if label is not None:
                    waiting.append(label)
                found += label is not None and reason is None
                missing += label is None and reason is None
                if reason is not None:
                    failed[feature] = reason
                if len(waiting) >= together:
                    store.add(waiting)
                    waiting.clear()
                show(what, count, len(todo))
    finally:
        store.add(waiting)
    from gemlens.records.labels import Counts
    from gemlens.report.labels import said_of

    tell(console, said_of(Counts(found, missing, len(failed)), result))
    if failed:
        feature, reason = next(iter(failed.items()))
        raise GemlensError(
            f"{len(failed):,} of {len(todo):,} features failed, the first being {feature}: {reason}; the same command "
            "tries them again"
        )


def _contexts(console: Console, dictionary: Named, model_id: str | None) -> Contexts:
    with busy(console, "Reading the evidence"):
        return open_contexts(dictionary, model_id)


def _store(dictionary: Named) -> LabelStore:
    from gemlens.scope.labels import LabelStore

    store = LabelStore()
    store.declare(dictionary)
    return store


def _endpoint(url: str | None, model: str | None, timeout: float, threads: int) -> tuple[Ask, str]:
    """Raises InputError for options that name no endpoint."""
    from gemlens.external.openai_compatible import chat

    url = url or os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise InputError(
            "--endpoint is missing: a server that speaks OpenAI's chat completions, as http://localhost:11434/v1"
        )
    if not model or not model.strip():
        raise InputError("--llm is missing: the name of the endpoint's model")
    if not 0 < timeout <= 86_400:
        raise InputError(f"--timeout {timeout:g}: seconds above 0")
    if not 1 <= threads <= 64:
        raise InputError(f"--parallel {threads}: 1 to 64")
    return chat(url, model, timeout=timeout), model
