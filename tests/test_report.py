"""Views of an ``Analysis``: JSON, files, the terminal table, the notebook fragment, the static side of the page."""

from __future__ import annotations

import dataclasses
import errno
import html.parser
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from gemlens.errors import InputError, OutputError
from gemlens.files import check_folder, write
from gemlens.records import ActiveFeatures, Analysis, FeatureActivation
from gemlens.report import files, summary, table, visible
from gemlens.report.html import to_html
from gemlens.report.json import to_dict, to_json, to_jsonl
from gemlens.report.links import neuronpedia_page
from gemlens.report.notebook import token_view
from report_sample import PAYLOADS, SAE, TRANSCODER, build, hostile, long_sample, sample

# --- JSON and JSONL ---------------------------------------------------------------------------------------------------


def test_json_has_the_documented_keys_in_order():
    record = json.loads(to_json(sample()))
    assert list(record) == [
        "schema_version", "prompt", "system", "prompt_text", "model_id", "sae_release", "sae_category", "sae_id",
        "layer", "top_k", "max_new_tokens", "dictionaries", "tokens", "labels", "warnings", "provenance",
    ]  # fmt: skip
    assert list(record["dictionaries"][0])[:7] == ["release", "category", "id", "site", "layer", "width", "neuronpedia"]
    assert list(record["tokens"][1]) == [
        "position", "token_id", "token", "text", "is_generated", "is_special", "l0", "features",
    ]  # fmt: skip
    assert (record["sae_release"], record["sae_category"]) == (SAE.release, SAE.category)
    assert (record["sae_id"], record["layer"]) == (SAE.id, SAE.layer)


def test_json_holds_what_the_record_holds():
    analysis = sample()
    record = json.loads(to_json(analysis))
    assert record == to_dict(analysis)
    for token, row in zip(analysis.tokens, record["tokens"], strict=True):
        found = tuple(
            FeatureActivation(f["feature_id"], f["activation"], f.get("dictionary", 0)) for f in row["features"]
        )
        assert found == token.features
        assert row["text"] == token.text
    assert record["provenance"]["seed"] == analysis.provenance.seed
    assert "日本語" in to_json(analysis)


def test_only_features_of_further_dictionaries_name_their_dictionary():
    both = to_dict(sample())["tokens"][5]["features"]
    assert [f.get("dictionary") for f in both] == [None] * 5 + [1] * 5
    assert list(both[0]) == ["feature_id", "activation"]


def test_bos_has_no_l0_and_no_features():
    bos = to_dict(sample())["tokens"][0]
    assert bos["l0"] is None
    assert bos["features"] == []


def test_jsonl_rows_stand_alone():
    analysis = sample(1)
    rows = [json.loads(line) for line in to_jsonl(analysis).splitlines()]
    assert len(rows) == len(analysis.tokens)
    assert list(rows[3]) == [
        "model_id", "sae_release", "sae_category", "sae_id", "layer", "top_k",
        "position", "token_id", "token", "text", "is_generated", "is_special", "l0", "features",
    ]  # fmt: skip
    assert rows[3]["features"] == to_dict(analysis)["tokens"][3]["features"]
    several = json.loads(to_jsonl(sample(2)).splitlines()[3])
    assert several["dictionaries"] == [f"{d.release}/{d.category}/{d.id}" for d in (SAE, TRANSCODER)]


def test_json_survives_surrogates_line_separators_and_numbers_that_are_none():
    analysis = hostile()
    text = to_json(analysis)
    assert json.loads(text.encode("utf-8"))["prompt"] == analysis.prompt
    # Python's splitlines also breaks at U+2028, which a JSON string may hold: rows end with a newline alone.
    rows = to_jsonl(analysis).encode("utf-8").decode().removesuffix("\n").split("\n")
    assert [json.loads(row)["token"] for row in rows] == [token.token for token in analysis.tokens]

    broken = dataclasses.replace(analysis.tokens[1], features=(FeatureActivation(7, float("nan")),))
    text = to_json(dataclasses.replace(analysis, tokens=(broken,)))
    assert json.loads(text, parse_constant=pytest.fail)["tokens"][0]["features"][0]["activation"] is None


# --- Files ------------------------------------------------------------------------------------------------------------


def names(folder) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("kind", files.KINDS)
def test_export_writes_one_file_under_its_name(tmp_path, kind):
    path = files.export(hostile(), kind, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"gemma_scope_2_report.{kind}"
    assert names(path.parent) == [path.name]
    assert len(path.read_bytes()) > 1000
    if kind != "parquet":
        assert path.read_text("utf-8")
    with pytest.raises(InputError, match="'pdf'; there is html, json, jsonl"):
        files.export(sample(), "pdf", tmp_path)


def test_any_text_can_be_written(tmp_path):
    write('"海\ud800"\r\n', tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == '"海\\ud800"\r\n'.encode()


def test_write_honours_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write("x", tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError, match=r"report\.json': No space left on device; free some space") as caught:
        write("new", path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "old"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write("new", tmp_path / "report.json")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "nul\0byte"):
        with pytest.raises(OutputError, match="cannot write"):
            check_folder(folder)
    with pytest.raises(OutputError, match="choose a folder that can be written"):
        write("x", tmp_path / "file" / "report.json")
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path / "a" / "b") == []


# --- Summary ----------------------------------------------------------------------------------------------------------


def by_hand() -> Analysis:
    """BOS, a control token, then three tokens with features 1, 2 and 9 of known activations."""
    tokens = [(text, text, False) for text in ("<bos>", "<start_of_turn>", "a", "b", "c")]
    rows = [{}, {9: 900.0}, {1: 2.0, 2: 5.0}, {1: 4.0, 9: 1.0}, {2: 5.0}]
    active = ActiveFeatures(
        indptr=np.cumsum([0, *map(len, rows)]),
        ids=np.array([i for row in rows for i in row]),
        values=np.array([v for row in rows for v in row.values()], dtype=np.float32),
    )
    return dataclasses.replace(build(tokens, (SAE,), prompt="abc", system=None), activations=(active,))


def test_strongest_counts_text_and_not_control_tokens():
    assert summary.strongest(by_hand(), 0, 10) == [
        summary.FeatureSummary(feature_id=2, max_activation=5.0, token=2, active_tokens=2, mean_activation=5.0),
        summary.FeatureSummary(feature_id=1, max_activation=4.0, token=3, active_tokens=2, mean_activation=3.0),
        summary.FeatureSummary(feature_id=9, max_activation=1.0, token=3, active_tokens=1, mean_activation=1.0),
    ]
    assert [f.feature_id for f in summary.strongest(by_hand(), 0, 1)] == [2]


def test_columns_equal_the_record_s_own():
    active = sample().activations[1]
    wanted = [*np.unique(active.ids)[::7].tolist(), 16383]
    found = summary.columns(active, wanted)
    assert list(found) == wanted
    for feature, (tokens, values) in found.items():
        dense = np.zeros(len(active.indptr) - 1, dtype=np.float32)
        dense[tokens] = values
        np.testing.assert_array_equal(dense, active.column(feature))
    assert summary.columns(active, []) == {}


def test_peaks_and_l0_of_every_dictionary():
    analysis = sample()
    for k, active in enumerate(analysis.activations):
        rows = [active.row(i)[1] for i in range(len(analysis.tokens))]
        np.testing.assert_array_equal(summary.peaks(active), [row.max(initial=0) for row in rows])
        assert summary.l0(analysis, k) == [None, *(len(row) for row in rows[1:])]
    assert summary.l0(analysis, 0) == [token.l0 for token in analysis.tokens]


def test_a_text_of_bos_alone_has_nothing_to_summarise():
    analysis = build([("<bos>", "<bos>", False)], (SAE,), prompt="", system=None)
    assert summary.strongest(analysis, 0, 5) == []
    assert "not read" in printed(analysis)
    assert to_html(analysis)
    assert token_view(analysis)


# --- Terminal ---------------------------------------------------------------------------------------------------------


def printed(analysis: Analysis, width: int = 80, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    table.render(analysis, Console(file=out, width=width, force_terminal=False))
    return out.buffer.getvalue().decode(encoding)


def test_table_fits_80_columns_and_shows_every_feature():
    analysis = sample()
    text = printed(analysis)
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("warning:") < text.index("not read")
    for token in analysis.tokens:
        for feature in token.features:
            assert f"{feature.feature_id} ({visible.number(feature.activation)})" in text
    assert "…" not in text
    assert text.count("generated\n") + len(re.findall(r"generated +\n", text)) == 2


def test_table_prints_markup_literally_and_no_control_character():
    tokens = [(text, text, text == ":smile:") for text in ("<bos>", "[red]", "\x1b[2J", ":smile:")]
    site = dataclasses.replace(SAE, site="[bold]site")
    text = printed(build(tokens, (site,), prompt="x", system=None, warnings=("[link=x]warn[/link]\x1b[2J",)))
    for literal in ("[red]", ":smile:", r"\x1b[2J", "[bold]site", "[link=x]warn[/link]"):
        assert literal in text
    assert "\x1b" not in text


def test_table_prints_where_the_terminal_has_only_ascii():
    assert r"\u65e5" in printed(sample(), width=120, encoding="ascii")


def test_visible_text():
    assert visible.inline(" a\nb\t\x07\u202e") == "·a↵b⇥\\x07\\u202e"
    assert visible.inline("👩\u200d🚀") == "👩\u200d🚀"
    assert visible.inline("\u200d") == "\\u200d"
    assert visible.inline("\U000e0001") == "\\U000e0001"
    assert visible.parts("a\n\nb") == [("text", "a"), ("newline", "\n"), ("newline", "\n"), ("text", "b")]
    assert visible.one_line("a\n b\x1b") == "a b\\x1b"
    shown = [visible.number(value) for value in (1234.5, 812.3, 12.34, 1.234, 0.012345)]
    assert shown == ["1,234", "812", "12.3", "1.23", "0.0123"]


# --- Links, notebook, page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [None, "", "a", "a/b/c", "../b", "a/..", "javascript:x/y", "a/b?c", 'a/b"', "a/b\n", "https://x/y", "a/ü"]
)
def test_only_plain_sources_become_links(source):
    assert neuronpedia_page(dataclasses.replace(SAE, neuronpedia=source)) is None


def test_neuronpedia_page():
    assert neuronpedia_page(SAE) == "https://www.neuronpedia.org/gemma-3-270m-it/12-gemmascope-2-res-16k/"


class Tags(html.parser.HTMLParser):
    """Every tag and attribute of a document, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_notebook_fragment_is_plain_html_and_escapes():
    fragment = Tags(token_view(hostile()))
    assert {tag for tag, _ in fragment.tags} == {"div", "b", "span", "table", "tr", "th", "td"}
    assert {name for _, attributes in fragment.tags for name in attributes} == {"style", "title"}
    for payload in PAYLOADS:
        if "\u2028" not in payload:
            assert payload in fragment.text
    assert token_view(hostile()).encode("utf-8")


def test_notebook_fragment_shows_features_and_links():
    analysis = sample()
    fragment = Tags(token_view(analysis))
    titles = [attributes["title"] for tag, attributes in fragment.tags if "title" in attributes]
    assert len(titles) == len(analysis.tokens)
    assert titles[0] == "not read"
    top = analysis.tokens[9].features[0]
    assert f"{top.feature_id} ({visible.number(top.activation)})" in titles[9]
    strongest = summary.strongest(analysis, 0, 1)[0].feature_id
    assert any(a.get("href") == f"{neuronpedia_page(SAE)}{strongest}" for tag, a in fragment.tags if tag == "a")
    assert analysis._repr_html_() == token_view(analysis)


def test_page_data_carries_every_feature_it_names_and_is_compact():
    analysis = sample()
    source = to_html(analysis, labels={1: {}, 0: {analysis.tokens[4].features[0].feature_id: "</script> the sea"}})
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.S)[1])
    assert list(data["dictionaries"][0]["labels"].values()) == ["</script> the sea"]
    for k, dictionary in enumerate(data["dictionaries"]):
        named = {str(f) for top in dictionary["top"] for f, _ in top} | {str(s["id"]) for s in dictionary["strongest"]}
        assert named == set(dictionary["columns"])
        for feature, (tokens, values) in dictionary["columns"].items():
            dense = np.zeros(len(analysis.tokens))
            dense[tokens] = values
            np.testing.assert_allclose(dense, analysis.activations[k].column(int(feature)), rtol=6e-4)
        texts = [t for t in range(len(analysis.tokens)) if not analysis.tokens[t].is_special]
        assert dictionary["scale"] == max(dictionary["peak"][t] for t in texts) < max(dictionary["peak"])
    assert len(to_html(long_sample(2000))) < 1_500_000


def test_page_asks_for_nothing_outside_itself():
    for analysis in (sample(), hostile()):
        page = Tags(to_html(analysis))
        assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
        assert [a["href"][:5] for tag, a in page.tags if tag == "link"] == ["data:"]
        assert not [a for _, a in page.tags if "src" in a or any(name.startswith("on") for name in a)]
        policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        to_html(analysis).encode("utf-8")


def test_views_do_not_import_torch():
    code = (
        "import sys, gemlens.report.files, gemlens.report.html, gemlens.report.notebook, gemlens.report.table;"
        "print([m for m in ('torch', 'transformers', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
