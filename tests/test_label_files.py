"""Labels to files and back, the real ones that are at hand, and the commands around them."""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_helpers import assert_refused, everything_in, run, spawn
from gemlens.app import label_hand
from gemlens.records.labels import FeatureFacts, Score
from gemlens.scope import label_progress
from gemlens.scope.label_files import COLUMNS
from gemlens.scope.label_names import named
from gemlens.scope.labels import LabelStore, label_file
from label_sample import KEY, MARKUP, OTHER, SMALL, Passages, label

pytestmark = pytest.mark.usefixtures("label_home")

NAMES = ["--sae-release", "gemma-scope-2b-pt-res-canonical", "--sae-id", "layer_20/width_16k/canonical"]
SCORES = (Score("detection", 0.9, 0.8, 0.97, 20, 20, "judge", "2026-01-02"), Score("words", 0.6, 0.4, 0.8, 20, 20))
WHOLE = label(
    11, MARKUP.replace("\x00", ""), source="neuronpedia", method="m", model="gpt", confidence="low", polysemantic=True,
    position="start, mostly", examples=12, created="2026-01-02T03:04:05+00:00", scores=SCORES,
)  # fmt: skip
BARE = label(12, "'quoted' \"twice\", and a comma", created="2026-01-02T03:04:05+00:00", polysemantic=False)
FOREIGN = label(0, "other", dictionary=OTHER, created="2026-01-02T03:04:05+00:00")


def fill(*labels):
    with LabelStore() as store:
        store.declare(named("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"))
        store.add(labels)


def stored(key=KEY):
    with LabelStore() as store:
        return [each for every in store.of(key).values() for each in every]


# There and back


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_goes_to_a_file_comes_back_field_for_field(tmp_path, capsys, monkeypatch, ending):
    fill(WHOLE, BARE, FOREIGN)
    file = tmp_path / f"labels.{ending}"
    assert run(capsys, "labels", "export", file).code == 0
    monkeypatch.setenv("GEMLENS_DATA", str(tmp_path / "elsewhere"))
    ran = run(capsys, "labels", "import", file)
    assert (ran.code, ran.err) == (0, f"3 new labels from {file}\n")
    assert stored() == [WHOLE, BARE]
    assert stored(OTHER) == [FOREIGN]
    assert run(capsys, "labels", "import", file).err.startswith("0 new labels")


def test_files_have_the_documented_columns(tmp_path, capsys):
    fill(WHOLE, BARE)
    run(capsys, "labels", "export", tmp_path / "a.csv", *NAMES)
    run(capsys, "labels", "export", tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == COLUMNS
    assert (first["score"], first["score_method"], first["polysemantic"]) == ("0.9", "detection", "True")
    assert second["score"] == second["confidence"] == ""
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert tuple(schema.names) == COLUMNS
    assert schema.field("feature").type == pa.int32()
    text = (Path(__file__).parents[1] / "docs" / "labels.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in COLUMNS)


def test_the_seeds_layout_there_and_back(tmp_path, capsys, monkeypatch):
    fill(WHOLE, BARE)
    with LabelStore() as store:
        label_progress.add_facts(store, KEY, {12: FeatureFacts((" May", "\u202e"), ("<b>",), 42.5)})
    assert run(capsys, "labels", "export", tmp_path / "sae").code == 0
    folder = "gemma-scope-2b-pt-res-canonical/layer_20_width_16k_canonical"
    assert everything_in(tmp_path / "sae")[-2:] == [f"{folder}/feature_labels.json", f"{folder}/metadata.json"]
    said = json.loads((tmp_path / "sae" / folder / "feature_labels.json").read_text("utf-8"))
    assert said["features"]["12"] == {
        "description": BARE.text,
        "top_positive_tokens": [" May", "\u202e"],
        "top_negative_tokens": ["<b>"],
        "max_activation": 42.5,
        "has_explanations": True,
    }
    assert said["stats"]["with_descriptions"] == 2
    monkeypatch.setenv("GEMLENS_DATA", str(tmp_path / "elsewhere"))
    assert run(capsys, "labels", "import", tmp_path / "sae" / folder).code == 0
    assert {each.feature: each.text for each in stored()} == {11: WHOLE.text.strip(), 12: BARE.text}
    with LabelStore() as store:
        assert label_progress.facts(store, KEY)[12] == FeatureFacts((" May", "\u202e"), ("<b>",), 42.5)


def test_the_seeds_own_example_is_read(tmp_path, capsys):
    """As seed 3 prints it: of layer 16, two features."""
    feature = {"description": "Automated description", "top_positive_tokens": ["token1", "token2"],
               "top_negative_tokens": ["token1"], "max_activation": 42.5, "has_explanations": True}  # fmt: skip
    info = {"release": "gemma-scope-2b-pt-res-canonical", "sae_id": "layer_16/width_16k/canonical",
            "neuronpedia_id": "gemma-2-2b/16-gemmascope-res-16k", "num_features": 16384,
            "downloaded_at": "2025-11-16T12:00:00Z"}  # fmt: skip
    silent = feature | {"has_explanations": False, "description": ""}
    whole = {"sae_info": info, "features": {"0": feature, "3": silent}, "stats": {}}
    (tmp_path / "feature_labels.json").write_text(json.dumps(whole))
    assert run(capsys, "labels", "import", tmp_path / "feature_labels.json").code == 0
    key = named("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k/canonical").key
    (found,) = stored(key)
    assert (found.text, found.created, found.source) == ("Automated description", "2025-11-16T12:00:00Z", "neuronpedia")
    assert_refused(run(capsys, "labels", "import", tmp_path, *NAMES), "is of", "not of")


def test_the_real_labels_of_neuronpedia_import(capsys):
    shared = os.environ.get("GEMLENS_SHARED")
    file = Path(shared or "", "data/neuronpedia/axbench_concept500_2b_l20.jsonl")
    if not shared or not file.is_file():
        pytest.skip("GEMLENS_SHARED names no folder with data/neuronpedia/axbench_concept500_2b_l20.jsonl")
    ran = run(capsys, "labels", "import", file)
    assert ran.err.startswith("500 new labels")
    found = {each.feature: each for each in stored()}
    assert found[16038].text == "references to rental services and associated equipment"
    assert {each.source for each in found.values()} == {"neuronpedia"}
    assert "16038" in run(capsys, "labels", "search", "rental equipment", *NAMES).out


def test_lines_with_addresses_of_neuronpedia_say_whose_they_are(tmp_path, capsys):
    """The twin of the test above, without given data."""
    rows = [{"concept_id": n, "concept": f"concept {n}", "ref": f"https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/{n}"}
            for n in range(5)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert run(capsys, "labels", "import", tmp_path / "a.jsonl").err.startswith("5 new labels")
    assert [each.text for each in stored()] == [f"concept {n}" for n in range(5)]


def test_a_file_that_names_no_dictionary_needs_one(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("feature,text,confidence\n3,sea,high\n")
    assert_refused(run(capsys, "labels", "import", tmp_path / "a.csv"), "row 1", "--sae-release")
    assert run(capsys, "labels", "import", tmp_path / "a.csv", *NAMES).code == 0
    (found,) = stored()
    assert (found.feature, found.text, found.confidence, found.source) == (3, "sea", "high", "a.csv")


# Bad files


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "feature,text\n-1,sea\n", "numbered from 0"),
        ("a.csv", "feature,text\n16384,sea\n", "it has 16,384 features"),
        ("a.csv", "feature,text\nmany,sea\n", "row 1"),
        ("a.csv", "feature,text\n1,\n", "no text"),
        ("a.csv", "feature,text\n1,sea,more\n", "more or fewer cells"),
        ("a.csv", 'feature,text\n1,"sea\n', "no CSV"),
        ("a.csv", "feature,text,confidence\n1,sea,certain\n", "none of high, medium, low"),
        ("a.csv", "feature,text,polysemantic\n1,sea,maybe\n", "neither true nor false"),
        ("a.csv", "feature,text,scores\n1,sea,[{}]\n", "row 1"),
        ("a.csv", "feature,text,scores\n1,sea,nonsense\n", "row 1"),
        ("a.csv", b"feature,text\n1,\xff\xfe\n", "not UTF-8"),
        ("a.csv", f"dictionary,feature,text\n{OTHER},1,sea\n", "not of"),
        ("a.parquet", "PAR1 not really", "no Parquet"),
        ("a.jsonl", '{"feature": 1, "text": "sea"}\n{"feature": 2,', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "no object"),
        ("a.jsonl", '{"feature": 1}\n', "no text"),
        (
            "a.jsonl",
            '{"concept": "x", "ref": "https://www.neuronpedia.org/gemma-2-2b/99-gemmascope-res-16k/1"}\n',
            "knows no",
        ),
        ("a.json", '{"features": {"1": {"description": "a"}, "1": {"description": "b"}}}', "there twice"),
        ("a.json", '{"features": {"-1": {"description": "a"}}}', "is no feature"),
        ("a.json", '{"features": {"01": {"description": "a"}}}', "is no feature"),
        ("a.json", '{"features": {"99999": {"description": "a", "has_explanations": true}}}', "it has 16,384 features"),
        ("a.json", "<html>log in</html>", "is not JSON"),
        ("a.json", "[]", "has no 'features'"),
        ("a.txt", "sea", "is no .csv"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_of_it_is_stored(tmp_path, capsys, name, content, said):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(run(capsys, "labels", "import", tmp_path / name, *NAMES), said)
    assert stored() == []


def test_a_file_that_is_not_there(tmp_path, capsys):
    for name in ("a.csv", "a.json", "nothing"):
        assert run(capsys, "labels", "import", tmp_path / name).code == 2


def test_exports_that_cannot_be(tmp_path, capsys):
    assert_refused(run(capsys, "labels", "export", tmp_path / "a.csv"), "no such label is stored")
    fill(BARE)
    assert_refused(run(capsys, "labels", "export", tmp_path / "a.xlsx"), "no .csv or .parquet")
    assert_refused(run(capsys, "labels", "export", tmp_path / "missing" / "a.csv"), "cannot write")


# Search


def test_search_prints_what_it_found_with_markup_as_it_is(capsys):
    fill(dataclasses.replace(WHOLE, text="[red]sea[/red] \x1b[31m \u202e <b>"), label(3, "the sea", method="auto"))
    ran = run(capsys, "labels", "search", "sea", *NAMES)
    assert ran.code == 0
    assert KEY in ran.out
    assert "[red]sea[/red]" in ran.out
    assert "\x1b" not in ran.out
    assert "\\x1b[31m" in ran.out
    assert "\u202e" not in ran.out
    assert re.search(r"3\s+\(auto\) the sea", ran.out)
    assert "(several" in ran.out
    assert "0.90" in ran.out


def test_search_as_json_is_whole(capsys):
    fill(WHOLE, FOREIGN)
    (found,) = json.loads(run(capsys, "labels", "search", "alert", "--json").out)
    assert found["text"] == WHOLE.text
    assert found["dictionary"] == KEY
    assert found["scores"][0]["auc"] == 0.9
    assert json.loads(run(capsys, "labels", "search", "nothing", "--json").out) == []


def test_search_in_a_release_or_one_of_its_dictionaries(capsys):
    fill(label(1, "sea"), label(2, "sea", dictionary=OTHER))
    both = json.loads(
        run(capsys, "labels", "search", "sea", "--json", "--sae-release", "google/gemma-scope-2b-pt-res").out
    )
    assert {each["feature"] for each in both} == {1, 2}
    one = json.loads(run(capsys, "labels", "search", "sea", "--json", *NAMES).out)
    assert [each["feature"] for each in one] == [1]


def test_search_where_nothing_is(capsys):
    assert_refused(run(capsys, "labels", "search", "sea"), "no label is stored yet")
    assert not label_file().exists()
    fill(BARE)
    ran = run(capsys, "labels", "search", "sea")
    assert (ran.code, ran.out) == (0, "")
    assert "try fewer words" in ran.err
    assert_refused(run(capsys, "labels", "search", "?!"), "no word to search for")
    assert_refused(run(capsys, "labels", "search", "sea", "--limit", "0"), "--limit 0")


def test_a_newer_store_is_one_line(capsys):
    fill(BARE)
    with LabelStore() as store:
        store.sql.execute("PRAGMA user_version = 99")
    assert_refused(run(capsys, "labels", "search", "sea"), "newer gemlens", "update gemlens")


# By hand


@pytest.fixture
def passages(monkeypatch):
    monkeypatch.setattr(label_hand, "open_contexts", lambda *_: Passages())
    monkeypatch.setattr(label_hand, "chosen", lambda *_: SMALL)


def test_add_without_questions(capsys):
    said = ["--confidence", "high", "--polysemantic", "--position", "end", "--source", "ann"]
    ran = run(capsys, "labels", "add", 7, *NAMES, "--text", " the sea ", *said)
    assert ran.code == 0
    (found,) = stored()
    assert dataclasses.replace(found, created="") == label(
        7, "the sea", source="ann", method="hand", confidence="high", polysemantic=True, position="end"
    )


def test_add_walks_through_the_protocol(passages, monkeypatch, capsys):
    """Ten examples, two more, an empty theme, a wrong confidence, then right ones."""
    said = iter(["", "word4, a harbour", "", "sure", "low"])
    monkeypatch.setattr(label_hand, "_ask", lambda _question, default=None: next(said) or default or "")
    more = iter([True, True])
    monkeypatch.setattr(label_hand, "_confirm", lambda _question: next(more))
    monkeypatch.setattr(label_hand, "_user", lambda: "ann")
    ran = run(capsys, "labels", "add", 4)
    assert ran.code == 0, ran.err
    assert ran.err.count("[ word4]") == 12
    assert "promotes: next4" in ran.err
    (found,) = stored(SMALL.key)
    assert (found.text, found.confidence, found.polysemantic, found.position, found.examples, found.source) == (
        "word4, a harbour", "low", True, "anywhere", 12, "ann",
    )  # fmt: skip


def test_add_reads_answers_from_a_pipe_and_an_end_of_it_stores_nothing(tmp_path):
    code = """if True:
        import sys
        sys.path.insert(0, "tests")
        from label_sample import SMALL, Passages
        from gemlens.app import label_hand
        from gemlens.app.cli import main
        label_hand.open_contexts, label_hand.chosen = lambda *_: Passages(), lambda *_: SMALL
        main()
    """
    root = Path(__file__).parents[1]
    ran = spawn("labels", "add", "4", code=code, cwd=root, input="n\nthe sea\n")
    assert (ran.code, ran.out) == (130, "")
    assert stored(SMALL.key) == []
    ran = spawn("labels", "add", "4", code=code, cwd=root, input="n\nthe sea\ny\nstart\nhigh\n")
    assert ran.code == 0, ran.err
    (found,) = stored(SMALL.key)
    assert (found.text, found.position, found.confidence, found.examples) == ("the sea", "start", "high", 10)


def test_few_or_no_examples_are_said(passages, monkeypatch, capsys):
    monkeypatch.setattr(label_hand, "open_contexts", lambda *_: Passages(firing=4))
    said = iter(["sea", "", "low"])
    monkeypatch.setattr(label_hand, "_ask", lambda _question, default=None: next(said) or default or "")
    monkeypatch.setattr(label_hand, "_confirm", lambda _question: False)
    assert "only 4 examples are on file; a label should rest on 10 or more" in run(capsys, "labels", "add", 4).err
    said = iter(["sea", "", "low"])
    assert "it fires on nothing that is on file" in run(capsys, "labels", "add", 0).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["16384", *NAMES, "--text", "x"], "0 to 16,383"),
        (["7", *NAMES, "--text", " "], "--text is empty"),
        (["7", *NAMES, "--text", "x", "--confidence", "sure"], "high, medium, low"),
        (["7", "--text", "x"], "--sae-release is missing"),
    ],
)
def test_what_cannot_be_added(capsys, arguments, said):
    assert_refused(run(capsys, "labels", "add", *arguments), said)
    assert not label_file().exists()
