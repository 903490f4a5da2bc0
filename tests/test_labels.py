"""The label store: what goes in comes out, for its own dictionary only, whatever happens meanwhile."""

import dataclasses
import os
import sqlite3
import subprocess
import sys

import pytest

from gemlens.errors import InputError, NotFoundError, OutputError
from gemlens.records import DictionaryInfo
from gemlens.records.labels import Label, Score, best_label
from gemlens.scope import catalog, label_schema
from gemlens.scope.label_names import Named, by_neuronpedia_id, check_source, key_of, named, of_release
from gemlens.scope.labels import LabelStore, label_file, labels_for
from label_sample import KEY, MARKUP, OTHER, label

pytestmark = pytest.mark.usefixtures("label_home")

SCORE = Score("detection", 0.9, 0.8, 0.97, 20, 20, "judge", "2026-01-02T03:04:05+00:00")


@pytest.fixture
def store():
    with LabelStore() as opened:
        yield opened


def info(release, path, **more):
    category, _, name = path.rpartition("/")
    about = {"site": "resid_post.20", "layer": 20, "width": 16384, "neuronpedia": None}
    return DictionaryInfo(release, category, name, **(about | more), path=path)


# What goes in comes out


def test_every_field_comes_out_as_it_went_in(store):
    whole = label(
        text="months", source="neuronpedia", method="oai_token-act-pair", model="gpt-4o-mini", confidence="high",
        polysemantic=True, position="start", examples=12, created="2026-01-02T03:04:05+00:00",
        scores=(SCORE, dataclasses.replace(SCORE, method="words", model=None)),
    )  # fmt: skip
    assert store.add([whole]) == 1
    (found,) = store.of(KEY, [7])[7]
    assert dataclasses.replace(found, scores=()) == dataclasses.replace(whole, scores=())
    assert set(found.scores) == set(whole.scores)
    assert found.score == SCORE  # a judge's says more than one by words


def test_a_feature_has_several_labels_and_the_same_one_only_once(store):
    several = [label(text=text) for text in ("one", "two")] + [label(text="one", source="you")]
    assert store.add(several) == 3
    assert store.add([*several, label(text="three")]) == 1
    assert [each.text for each in store.of(KEY)[7]] == ["one", "two", "one", "three"]


def test_the_same_words_again_add_what_was_not_known(store):
    store.add([label(confidence="low", position="start", scores=(SCORE,))])
    store.add([label(confidence="high", polysemantic=False, scores=(dataclasses.replace(SCORE, auc=0.7),))])
    (found,) = store.of(KEY)[7]
    assert (found.confidence, found.position, found.polysemantic) == ("high", "start", False)
    assert [score.auc for score in found.scores] == [0.7]


def test_what_is_stored_is_dated(store):
    store.add([label()])
    assert store.of(KEY)[7][0].created.startswith("20")


def test_markup_and_control_characters_stay_but_for_what_no_text_can_hold(store):
    store.add([label(text=MARKUP + "\ud800")])
    assert store.of(KEY)[7][0].text == MARKUP.replace("\x00", "\ufffd") + "\ufffd"


def test_a_hand_written_label_is_shown_before_a_scored_one_and_an_automatic_one_last():
    auto, scored = label(method="auto", confidence="high"), label(scores=(SCORE,))
    hand, better = label(method="hand"), label(scores=(dataclasses.replace(SCORE, auc=0.95),))
    assert best_label([auto, scored, hand, better]) is hand
    assert best_label([auto, scored, better]) is better
    assert best_label([auto]) is auto
    assert auto.shown.startswith("(auto) ")
    assert best_label([]) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (label(feature=-1), "numbered from 0"),
        (label(feature=16384), "it has 16,384 features, 0 to 16,383"),
        (label(text=" \n"), "is empty"),
        (label(confidence="certain"), "none of high, medium, low"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_of_it_stored(store, wrong, said):
    store.declare(named("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"))
    with pytest.raises(InputError, match=said):
        store.add([label(1), wrong])
    assert store.of(KEY) == {}


# Whose it is


def test_all_names_of_a_dictionary_lead_to_one_and_no_two_dictionaries_share_one(tmp_path, monkeypatch):
    full = named("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    canonical = named("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical")
    by_repo = named("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    loaded = info("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    assert {full.key, canonical.key, by_repo.key, key_of(loaded)} == {KEY}
    deep, every = (
        named("google/gemma-scope-2-270m-it", f"{folder}/layer_12_width_16k_l0_small")
        for folder in ("resid_post", "resid_post_all")
    )
    assert deep.key != every.key
    assert named("google/gemma-scope-2-270m-it", "layer_12_width_16k_l0_small", category="resid_post").key == deep.key
    keys = [f"{entry.repo}/{entry.path}" for entry in {(e.repo, e.path): e for e in catalog.entries()}.values()]
    assert len(keys) == len(set(keys))


def test_a_folder_is_the_same_under_any_name(tmp_path, monkeypatch):
    place = tmp_path / "mine" / "resid_post" / "layer_2_width_40_l0_small"
    place.mkdir(parents=True)
    (place / "params.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    names = [named("mine"), named(str(tmp_path / "mine"), "layer_2_width_40_l0_small", category="resid_post")]
    names += [named(str(place)), named("./mine/../mine", "resid_post/layer_2_width_40_l0_small")]
    assert {each.key for each in names} == {place.resolve().as_posix()}
    assert key_of(info("mine", "resid_post/layer_2_width_40_l0_small")) == names[0].key
    with pytest.raises(NotFoundError, match="layer_2_width_40_l0_small"):
        named("mine", "layer_9_width_40_l0_small", category="resid_post")


def test_labels_are_given_out_for_their_dictionary_only(store):
    store.add([label(), label(dictionary=OTHER, feature=8, text="other")])
    repo = "google/gemma-scope-2b-pt-res"
    assert {f: e.text for f, e in labels_for(info(repo, "layer_20/width_16k/average_l0_71"), [7, 8]).items()} == {
        7: "months of the year"
    }
    assert labels_for(info(repo, "layer_20/width_16k/average_l0_139"), [7, 8]) == {}
    assert labels_for(info("elsewhere", "layer_20/width_16k/average_l0_71"), [7, 8]) == {}


def test_reading_labels_where_none_are_makes_no_file():
    assert labels_for(info("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"), range(10**6)) == {}
    assert not label_file().exists()


def test_ids_of_neuronpedia_lead_to_one_dictionary_and_are_refused_for_another():
    own = named("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical")
    assert by_neuronpedia_id("gemma-2-2b/20-gemmascope-res-16k").key == own.key == KEY
    assert by_neuronpedia_id("gemma-2-2b/nothing-of-the-kind") is None
    check_source(own, "gemma-2-2b/20-gemmascope-res-16k")
    check_source(own, "gemma-2-2b/20-something-of-mine")  # nobody says that it is another's
    with pytest.raises(InputError, match="layer_19"):
        check_source(own, "gemma-2-2b/19-gemmascope-res-16k")


def test_a_release_leads_to_its_dictionaries():
    keys = [KEY, OTHER, "starter/resid_post/x", "google/gemma-scope-2b-pt-mlp/layer_1/width_16k/average_l0_10"]
    assert of_release("google/gemma-scope-2b-pt-res", keys) == [KEY, OTHER]
    assert of_release("gemma-scope-2b-pt-res-canonical", keys) == [KEY]
    assert of_release("starter", keys) == ["starter/resid_post/x"]
    with pytest.raises(NotFoundError, match="gemma-scope-2b-pt-res"):
        of_release("gemma-scope-2b-pt-rse", keys)


# Search


def test_search_finds_words_whatever_their_endings_and_in_any_order(store):
    texts = ["time travel in films", "travelling through time", "the times table", "space travel"]
    store.add(label(feature, text) for feature, text in enumerate(texts))
    assert {each.feature for each in store.search("time travel")} == {0, 1}
    assert store.search("time travel")[0].feature == 0, "the phrase as it stands comes first"
    assert [each.feature for each in store.search('"time travel"')] == [0]
    assert [each.feature for each in store.search("TRAVELS time", limit=1)] != []
    assert store.search("nothing of it") == []
    assert {each.feature for each in store.search("space films", any_word=True)} == {0, 3}


def test_search_in_some_dictionaries_leaves_out_the_others(store):
    store.add([label(1, "sea"), label(2, "sea", dictionary=OTHER)])
    assert [each.feature for each in store.search("sea", dictionaries=[OTHER])] == [2]
    assert store.search("sea", dictionaries=["nobody's"]) == []
    assert len(store.search("sea", dictionaries=[KEY, OTHER])) == 2


@pytest.mark.parametrize(
    "query", ['"', "a OR b NOT c", "text:sea", "sea*", "NEAR(sea, 2)", "sea AND", "(", "d1", "-sea", "se'a"]
)
def test_a_query_is_words_and_never_a_language(store, query):
    store.add([label(1, "sea or not, a b c near and 2 text d1 se a")])
    try:
        found = store.search(query)
    except InputError as error:
        assert "holds no word" in str(error)  # only signs
    else:
        assert [each.feature for each in found] == [1]


def test_a_label_is_found_by_its_words_only_not_by_its_dictionary(store):
    store.add([label(1, "sea")])
    assert store.search("d1") == []


# The file


def test_a_store_of_a_newer_gemlens_is_refused(store):
    store.add([label()])
    store.sql.execute(f"PRAGMA user_version = {label_schema.SCHEMA + 1}")
    with pytest.raises(InputError, match=r"newer gemlens \(version 2; this one knows 1\): update gemlens"):
        LabelStore()


def test_another_programs_database_and_a_damaged_file_are_left_alone(tmp_path):
    theirs = tmp_path / "theirs.sqlite"
    with sqlite3.connect(theirs) as other:
        other.execute("CREATE TABLE things (id)")
    for path, said in [(theirs, "another program's"), (tmp_path / "text", "damaged, or no label store")]:
        if not path.exists():
            path.write_text("not a database at all, " * 40)
        before = path.read_bytes()
        with pytest.raises(InputError, match=said):
            LabelStore(path)
        assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="GEMLENS_DATA"):
        LabelStore(tmp_path / "file" / "labels.sqlite")


def test_what_fails_half_way_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.writing():
        store.add([label()])
        1 / 0  # noqa: B018
    assert store.of(KEY) == {}
    store.add([label()])
    assert len(store.of(KEY)) == 1


def test_readers_read_while_somebody_writes(store):
    store.add([label(1, "sea")])
    with store.writing():
        store.add([label(2, "sea too")])
        with LabelStore() as reader:
            assert [each.feature for each in reader.search("sea")] == [1]
    with LabelStore() as reader:
        assert {each.feature for each in reader.search("sea")} == {1, 2}


WRITER = """
import sys
from gemlens.records.labels import Label
from gemlens.scope.labels import LabelStore
who = sys.argv[1]
for start in range(0, 200, 4):
    with LabelStore() as store:
        store.add(Label("here", start + i, f"sea {who} {start + i}", who) for i in range(4))
        store.add([Label("here", 999, "the same", "both")])
"""


def test_two_processes_writing_at_once_lose_nothing_and_store_nothing_twice():
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, who], env=os.environ, stderr=subprocess.PIPE) for who in "ab"
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=100)
        assert writer.returncode == 0, said.decode()
    with LabelStore() as store:
        found = store.of("here")
        assert {f: sorted(each.source for each in every) for f, every in found.items()} == {
            **{feature: ["a", "b"] for feature in range(200)},
            999: ["both"],
        }
        store.sql.execute("INSERT INTO labels_text (labels_text, rank) VALUES ('integrity-check', 1)")


def test_a_declared_dictionary_keeps_what_was_known_of_it(store):
    store.declare(Named("k", "release", "id", width=10, neuronpedia="m/s"))
    store.declare(Named("k", "canonical", "other"))
    store.add([label(dictionary="k")])
    assert store.dictionaries()["k"] == Named("k", "canonical", "other", width=10, neuronpedia="m/s")


def test_labels_are_records():
    with pytest.raises(dataclasses.FrozenInstanceError):
        label().text = "other"  # type: ignore[misc]
    assert isinstance(label(), Label)
