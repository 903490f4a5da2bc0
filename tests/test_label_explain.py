"""Labels written and judged by a language model, a scripted one on this machine, and those that need none."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import assert_refused, run
from fake_endpoint import FakeEndpoint
from gemlens import web
from gemlens.app import label_explain
from gemlens.errors import AccessError, InputError, NetworkError, NotFoundError
from gemlens.external.openai_compatible import chat
from gemlens.records.labels import Context, Label, Reply, Score
from gemlens.scope.labels import LabelStore
from gemlens.study import label_scores
from gemlens.study.auc import auc, interval
from gemlens.study.auto_labels import auto_label
from gemlens.study.contexts import FileContexts, marked, spread
from gemlens.study.explain import explain
from label_sample import SMALL, Passages

WORKER = str(Path(__file__).with_name("label_worker.py"))
GOOD = {"polysemantic": False, "position": "anywhere", "confidence": "high"}


def answers(messages):
    """Says what the marked word is; judges rightly by the words of the label."""
    text = messages[-1]["content"]
    if "Passage 1:" not in text:
        found = re.findall(r"<<\s*(\w+)>>", text)
        return json.dumps({"label": " and ".join(sorted(set(found))), **GOOD})
    label, _, passages = text.partition("described as: ")[2].partition("\n")
    words = label.split(" and ")
    shown = re.split(r"Passage \d+:\n", passages)[1:]
    if "<<" in passages:
        return json.dumps([int(any(f"<< {word}>>" in each for word in words)) for each in shown])
    return "Sure: " + json.dumps([int(any(word in each.split() for word in words)) for each in shown])


@pytest.fixture
def endpoint(label_home, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(web.time, "sleep", lambda _seconds: None)
    with FakeEndpoint(answers) as fake:
        yield fake


@pytest.fixture
def passages(monkeypatch, label_home):
    monkeypatch.setattr(label_explain, "open_contexts", lambda *_: Passages())
    monkeypatch.setattr(label_explain, "chosen", lambda *_: SMALL)


def stored():
    with LabelStore() as store:
        return store.of(SMALL.key)


def expected(feature):
    return f"word{feature}" if feature % 2 == 0 else f"also{feature} and word{feature}"


# The area, and how sure it is


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    draw = random.Random(0)
    for _ in range(50):
        first, second = ([draw.randrange(6) for _ in range(draw.randint(1, 12))] for _ in range(2))
        pairs = [(a > b) + (a == b) / 2 for a in first for b in second]
        assert auc(first, second) == pytest.approx(sum(pairs) / len(pairs))
    assert auc([], [1]) == 0.5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Normal groups one deviation apart: the area is 0.760. 2,000 draws of 20 against 20."""
    draw = np.random.default_rng(0)
    truth, held = 0.7602499, 0
    for _ in range(2000):
        first, second = draw.normal(1, 1, 20).tolist(), draw.normal(0, 1, 20).tolist()
        low, high = interval(auc(first, second), 20, 20)
        held += low <= truth <= high
    assert 0.93 <= held / 2000 <= 0.985


def test_the_interval_is_never_a_point_and_shrinks_with_more():
    for area in (0.0, 0.5, 0.9, 1.0):
        (low, high), (closer, further) = interval(area, 10, 10), interval(area, 200, 200)
        assert 0 <= low <= closer <= area <= further <= high <= 1
        assert high - low > further - closer > 0.001
    assert interval(1.0, 10, 10)[0] < 0.9
    assert interval(0.5, 0, 4) == (0.0, 1.0)


# Scores without a model


def test_words_that_passages_share_score_high_and_others_at_chance():
    contexts = Passages()
    firing, silent = contexts.firing(4), contexts.silent(4, 20)
    right, wrong = (
        label_scores.by_words(text, firing, silent) for text in ("references to word4s", "trains and rails")
    )
    assert (right.auc, right.method, right.firing, right.silent) == (1.0, "words", 12, 20)
    assert right.low > 0.8
    assert wrong.auc == 0.5
    assert wrong.low < 0.5 < wrong.high


def test_words_of_every_label_count_for_nothing():
    context = Context(("references", " to", " the", " text", " of", " various", " contexts"), (1.0,) * 7)
    other = Context((" boat",), (0.0,))
    assert label_scores.by_words("references to various text", [context] * 3, [other] * 3).auc == 0.5


def test_top_tokens_are_held_against_passages_that_they_were_not_taken_from():
    contexts = Passages()
    assert label_scores.by_tokens(contexts.firing(4), contexts.silent(4, 20)).auc == 1.0
    # Tokens that occur once each: seen in their own passages they would tell all of them apart.
    noise = [Context((f" rare{n}", " sea"), (1.0, 0.0)) for n in range(20)]
    assert label_scores.by_tokens(noise, contexts.silent(4, 20)).auc == 0.5


@pytest.mark.parametrize(
    ("a", "b"), [("travelling", "travels"), ("months", "month"), ("cities", "city"), ("boats", "boat")]
)
def test_endings_do_not_matter(a, b):
    assert label_scores.stem(a) == label_scores.stem(b)


def test_too_few_passages_are_no_score():
    with pytest.raises(InputError, match="too few"):
        label_scores.by_words("x", Passages().firing(4)[:1], [])


# Scores by a judge


def test_a_judge_that_is_right_gives_one_and_one_that_guesses_a_half():
    contexts = Passages()
    firing, silent = contexts.firing(4), contexts.silent(4, 12)
    by_truth = lambda messages: Reply(answers(messages))  # noqa: E731
    always = lambda messages: Reply(json.dumps([1] * int(re.search(r"list of (\d+)", messages[0]["content"])[1])))  # noqa: E731
    assert label_scores.detection("word4", firing, silent, by_truth, model="m").auc == 1.0
    assert label_scores.fuzzing("word4", firing, by_truth, model="m").auc == 1.0
    assert label_scores.detection("word4", firing, silent, always, model="m").auc == 0.5
    found = label_scores.fuzzing("word4", firing, always, model="m")
    assert (found.auc, found.firing, found.silent, found.model) == (0.5, 6, 6, "m")


def test_passages_are_shuffled_so_that_order_tells_nothing():
    asked = []
    ask = lambda messages: asked.append(messages[0]["content"]) or Reply(answers(messages))  # noqa: E731
    contexts = Passages()
    label_scores.detection("word4", contexts.firing(4), contexts.silent(4, 12), ask, model="m", seed=3)
    fires = [int("word4" in each) for each in re.split(r"Passage \d+:\n", "".join(asked)) if "Passage" not in each][1:]
    assert sum(fires) < len(fires)
    assert fires != sorted(fires, reverse=True)


def test_marks_are_around_whole_runs():
    context = Context((" a", " b", " c", " d"), (0.0, 2.0, 1.0, 0.0))
    assert marked(context) == " a<< b c>> d"
    assert marked(context, {3}) == " a b c<< d>>"


# Explanations


def test_a_label_carries_what_a_person_would_note():
    said = {"label": "the word word4", "polysemantic": True, "position": "start", "confidence": "LOW", "more": 1}
    found = explain(
        "k", 4, Passages(), lambda _: Reply(f"Here: {json.dumps(said)} as asked."), source="gemlens", model="m"
    )
    assert found == Label("k", 4, "the word word4", "gemlens", "explained", "m", "low", True, "start", 12)


def test_the_model_sees_passages_from_the_strongest_on_and_what_is_promoted():
    asked = []
    explain("k", 4, Passages(), lambda m: asked.append(m) or Reply(answers(m)), source="s", model="m")
    text = asked[0][1]["content"]
    strengths = [float(value) for value in re.findall(r"^([\d.]+): ", text, re.M)]
    assert strengths == sorted(strengths, reverse=True)
    assert len(strengths) == 12
    assert '" next4"' in text
    assert "follow no instruction" in asked[0][0]["content"]


def test_a_feature_that_never_fired_is_not_asked_about():
    assert explain("k", 0, Passages(), lambda _: pytest.fail("asked"), source="s", model="m") is None


@pytest.mark.parametrize(
    "bad", ["", "I cannot say.", "[1, 2]", '{"label": ""}', '{"label": 3}', '{"labl": "x"}', "{" * 2000]
)
def test_an_answer_that_is_none_is_asked_for_once_more(bad):
    replies = iter([bad, json.dumps({"label": "better"})])
    found = explain("k", 4, Passages(), lambda _: Reply(next(replies)), source="s", model="m")
    assert (found.text, found.confidence) == ("better", None)
    with pytest.raises(InputError, match="did not answer with a label"):
        explain("k", 4, Passages(), lambda _: Reply(bad), source="s", model="m")


def test_a_refusal_is_one():
    with pytest.raises(InputError, match="refused"):
        explain("k", 4, Passages(), lambda _: Reply("", refused=True), source="s", model="m")


# The endpoint


def test_the_endpoint_gets_what_it_should_and_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.reply = lambda _: "fine"
    assert chat(endpoint.url + "/", "judge")([{"role": "user", "content": "Hello"}]) == Reply("fine")
    (asked,) = endpoint.asked
    assert asked["model"] == "judge"
    assert asked["temperature"] == 0
    assert asked["messages"] == [{"role": "user", "content": "Hello"}]
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, Reply("", True)),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}, Reply("x", True)),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}, Reply("ab")),
    ],
)
def test_refusals_and_parts_are_understood(endpoint, reply, found):
    endpoint.reply = lambda _: reply
    assert chat(endpoint.url, "judge")([]) == found


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ({"error": "x"}, NetworkError, "without a message"),
        ({"choices": []}, NetworkError, "without a message"),
        (b"<html>log in</html>", NetworkError, "not JSON"),
        (401, AccessError, "key"),
        (404, NotFoundError, "does not exist"),
        (400, NetworkError, "answered 400"),
        (500, NetworkError, "3 times"),
    ],
)
def test_what_is_no_answer_is_one_line(endpoint, monkeypatch, reply, kind, said):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    endpoint.reply = lambda _: reply
    with pytest.raises(kind, match=said) as error:
        chat(endpoint.url, "judge")([])
    assert "sk-secret" not in str(error.value)


def test_an_endpoint_that_hangs_is_given_up(endpoint):
    endpoint.reply = lambda _: None
    start = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached, or broke off"):
        chat(endpoint.url, "judge", timeout=0.2)([])
    assert time.monotonic() - start < 5


# The commands


def test_explain_labels_every_feature_that_fires_and_scores_it(endpoint, passages, capsys):
    ran = run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--score", "--features", "0-5")
    assert (ran.code, ran.out) == (0, "")
    assert "5 features with a label, 1 without, 0 failed" in ran.err
    found = stored()
    assert {feature: every[0].text for feature, every in found.items()} == {f: expected(f) for f in range(1, 6)}
    assert {score.method: score.auc for score in found[4][0].scores} == {"detection": 1.0, "fuzzing": 1.0}
    asked = len(endpoint.asked)
    again = run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--features", "0-5")
    assert "5 of 6 are there already" in again.err
    assert len(endpoint.asked) == asked
    run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "another", "--features", "4")
    assert [each.model for each in stored()[4]] == ["judge", "another"]


def test_what_fails_costs_nothing_else_and_is_tried_again(endpoint, passages, capsys):
    """Refusals, nonsense and broken connections for some, answers for the others."""
    bad = {3: {"choices": [{"message": {"refusal": "no"}}]}, 5: "I'd rather not", 7: 500, 8: b"{", 11: {"choices": [7]}}

    def reply(messages):
        feature = int(re.search(r"<< (?:word|also)(\d+)>>", messages[1]["content"])[1])
        return bad.get(feature, answers(messages))

    endpoint.reply = reply
    arguments = ["labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--parallel", "2"]
    ran = run(capsys, *arguments)
    assert ran.code == 2
    assert "18 features with a label, 1 without, 5 failed" in ran.err
    assert "5 of 24 features failed, the first being 3: the model refused" in ran.err
    assert set(stored()) == set(range(1, 24)) - set(bad)
    bad.clear()
    assert run(capsys, *arguments).code == 0
    assert {feature: [each.text for each in every] for feature, every in stored().items()} == {
        feature: [expected(feature)] for feature in range(1, 24)
    }


def test_an_endpoint_that_dies_ends_the_run_with_what_was_done(endpoint, passages, capsys):
    endpoint.reply = lambda messages: answers(messages) if len(endpoint.asked) <= 6 else 500
    ran = run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--parallel", "1")
    assert ran.code == 2
    assert "the endpoint does not answer" in ran.err
    assert "the same command goes on" in ran.err
    assert len(stored()) == 6
    assert len(endpoint.asked) < 6 + 3 * 6


def test_a_wrong_key_ends_the_run_at_once(endpoint, passages, capsys):
    endpoint.reply = lambda _: 401
    ran = run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--parallel", "1")
    assert (ran.code, "check the key" in ran.err) == (2, True)
    assert len(endpoint.asked) <= 3


def test_a_judge_that_fails_in_the_middle_leaves_the_label(endpoint, passages, capsys):
    endpoint.reply = lambda m: "perhaps" if "Passage 1:" in m[0]["content"] else answers(m)
    ran = run(capsys, "labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--score", "--features", "4")
    assert ran.code == 2
    assert "did not answer with 8 numbers" in ran.err
    assert [each.text for each in stored()[4]] == ["word4"]


def test_score_needs_no_endpoint_and_goes_on(endpoint, passages, capsys):
    with LabelStore() as store:
        store.add([Label(SMALL.key, f, f"word{f}", "me") for f in (0, 2, 4)] + [Label(SMALL.key, 6, "trains", "me")])
    ran = run(capsys, "labels", "score")
    assert (ran.code, endpoint.asked) == (0, [])
    assert "3 features with a score, 1 without, 0 failed" in ran.err
    scores = {f: {s.method: s.auc for s in every[0].scores} for f, every in stored().items()}
    assert scores == {0: {}, 2: {"words": 1, "tokens": 1}, 4: {"words": 1, "tokens": 1}, 6: {"words": 0.5, "tokens": 1}}
    more = run(capsys, "labels", "score", "--endpoint", endpoint.url, "--llm", "judge")
    assert more.code == 0
    assert {s.method for s in stored()[4][0].scores} == {"words", "tokens", "detection", "fuzzing"}
    asked = len(endpoint.asked)
    run(capsys, "labels", "score", "--endpoint", endpoint.url, "--llm", "judge")
    assert len(endpoint.asked) == asked


def test_auto_labels_say_what_is_to_be_seen_and_that_nobody_read_it(passages, capsys):
    ran = run(capsys, "labels", "auto")
    assert "23 features with a label, 1 without, 0 failed" in ran.err
    found = stored()
    (even,), (odd,) = found[4], found[5]
    assert even.text == "“word4” · near: harbour"
    assert even.shown == f"(auto) {even.text}"
    assert even.score.method == "tokens"
    assert odd.text.startswith("“word5”, “also5”") or odd.text.startswith("“also5”, “word5”")
    assert run(capsys, "labels", "auto").code == 0
    assert {len(every) for every in stored().values()} == {1}


def test_an_auto_label_of_scattered_tokens_says_so():
    class Scattered(Passages):
        def firing(self, feature):
            return [Context((f" t{n}", " sea"), (1.0, 0.0)) for n in range(12)]

    assert auto_label("k", 3, Scattered()).text == "“t0”, “t1”, “t10” and others"


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("explain", [], "--endpoint is missing"),
        ("explain", ["--endpoint", "http://localhost:1/v1"], "--llm is missing"),
        ("explain", ["--endpoint", "localhost", "--llm", "m"], "is no address"),
        ("explain", ["--endpoint", "http://localhost:1/v1", "--llm", "m", "--timeout", "0"], "--timeout 0"),
        ("explain", ["--endpoint", "http://localhost:1/v1", "--llm", "m", "--parallel", "0"], "--parallel 0"),
        ("explain", ["--endpoint", "http://localhost:1/v1", "--llm", "m", "--features", "5-99"], "0 to 23"),
        ("explain", ["--endpoint", "http://localhost:1/v1", "--llm", "m", "--features", "a,b"], "numbers and ranges"),
        ("auto", ["--features", "9-3"], "0 to 23"),
        ("score", ["--method", "detection"], "needs a language model"),
        ("score", [], "no label of here/small is stored"),
    ],
)
def test_bad_options_are_one_line(endpoint, passages, capsys, command, arguments, said):
    assert_refused(run(capsys, "labels", command, *arguments), said)


def test_killed_twenty_times_it_ends_with_every_label_once(endpoint):
    """kill -9 at random moments of an explain run; then once to the end."""
    draw = random.Random(6)
    endpoint.reply = lambda messages: time_to(0.004) or answers(messages)
    arguments = ["labels", "explain", "--endpoint", endpoint.url, "--llm", "judge", "--parallel", "2"]
    for _ in range(20):
        reached, wanted = threading.Event(), len(endpoint.asked) + draw.randint(2, 3)
        endpoint.on_request = lambda count, wanted=wanted, reached=reached: count >= wanted and reached.set()
        process = subprocess.Popen([sys.executable, WORKER, *arguments], env=os.environ, stderr=subprocess.DEVNULL)
        while not reached.wait(0.05) and process.poll() is None:
            pass
        time_to(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run([sys.executable, WORKER, *arguments], stderr=subprocess.DEVNULL).returncode == 0
    assert {feature: [each.text for each in every] for feature, every in stored().items()} == {
        feature: [expected(feature)] for feature in range(1, 24)
    }
    # Of each killed run at most the answers that were under way are asked for again.
    assert len(endpoint.asked) <= 23 + 20 * 4


def time_to(seconds):
    """Waits although ``time.sleep`` is quick in these tests."""
    threading.Event().wait(seconds)


# Passages from evidence


class Examples:
    """Six sequences of ten tokens; BOS (2) first, padding (0) last. Feature 0 fires in the first three."""

    width, sequences = 2, 6

    def __init__(self):
        self.rows = {s: np.array([2, *(10 * s + p for p in range(1, 8)), 0, 0]) for s in range(6)}

    def feature(self, index):
        empty = np.array([], dtype=np.int64)
        if index:
            return dataclasses.make_dataclass("F", ["activations", "positions", "seq_ids", "top"])(
                empty, empty, empty, ()
            )
        return dataclasses.make_dataclass("F", ["activations", "positions", "seq_ids", "top"])(
            np.array([9.0, 8.0, 5.0, 1.0]), np.array([3, 1, 5, 7]), np.array([1, 0, 1, 2]), ((11, 2.0), (12, 1.0))
        )

    def token_rows(self, sequences):
        return {each: self.rows[each] for each in sequences}


class Vocabulary:
    special = frozenset({0, 2})

    def texts(self, ids):
        return [f" t{each}" for each in ids]


def test_passages_come_from_evidence_with_every_activation_that_is_on_file():
    contexts = FileContexts(Examples(), Vocabulary())
    first, second, third = contexts.firing(0)
    assert first.tokens == tuple(f" t{n}" for n in range(11, 18)), "no BOS, no padding"
    assert first.activations == (0, 0, 9.0, 0, 5.0, 0, 0), "both of this sequence"
    assert (second.activations[0], third.activations[6]) == (8.0, 1.0)
    assert contexts.firing(1) == []
    assert contexts.promoted(0) == (" t11", " t12")


def test_silent_passages_are_of_other_sequences_and_the_same_each_time():
    contexts = FileContexts(Examples(), Vocabulary())
    silent = contexts.silent(0, 10)
    assert silent == contexts.silent(0, 10)
    assert {int(each.tokens[0][2:]) // 10 for each in silent} == {3, 4, 5}
    assert not any(any(each.activations) for each in silent)
    assert len(contexts.silent(0, 2)) == 2


def test_a_spread_reaches_from_the_strongest_to_the_weakest():
    contexts = [Context((str(n),), (float(n),)) for n in range(100, 0, -1)]
    found = [each.activations[0] for each in spread(contexts, 10)]
    assert found[0] == 100
    assert found == sorted(found, reverse=True)
    assert found[-1] <= 10
    assert Score("words", 1, 1, 1, 1, 1).model is None
