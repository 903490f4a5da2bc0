"""Views of attributions and lenses: what they say, and that texts stay texts."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from attribution_sample import attribution, feature_lens, residual_lens
from gemlens.report import attribution as report
from gemlens.report import lens as lens_report
from gemlens.report.attribution_page import to_html
from gemlens.report.lens_page import features_to_html, residual_to_html
from report_sample import PAYLOADS

PAGES = {
    "attribution": lambda: to_html(attribution()),
    "features": lambda: features_to_html(feature_lens()),
    "residual": lambda: residual_to_html(residual_lens()),
}


def printed(draw, encoding="utf-8", width=160):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    draw(Console(file=file, width=width, markup=False, highlight=False))
    file.flush()
    return raw.getvalue().decode(encoding)


def test_the_table_says_sums_features_tokens_and_what_was_verified():
    text = printed(lambda console: report.render(attribution(), console))
    assert re.search(r"resid_post\.2 +-0\.125 +\+0\.5 +0 +\+1\.50 +\+1\.88 +\+2\.00", text)
    assert re.search(r"resid_post\.2:900 +-2\.00 +1 +2\.00 +·sea +#2", text)
    assert re.search(r"resid_post\.2:7 +\+1\.75 +3 +3\.00 +The +#1", text)
    assert re.search(r"2 +·sea +-2\.25 .*resid_post\.2:900 \(", text)
    assert "not read" in text
    assert "4 features removed, one at a time: predicted and actual correlate by 0.97" in text
    assert "[red]x" in text and "warning: warning" in text
    assert "·" not in printed(lambda console: report.render(attribution(), console), encoding="ascii")
    assert "removed" not in printed(lambda console: report.render(attribution(removed=()), console))


def test_json_holds_everything_and_jsonl_a_row_for_each_entry():
    record = attribution()
    found = json.loads(report.to_json(record))
    assert (found["schema_version"], found["target"], found["value"]) == (1, record.target, 12.25)
    assert found["effects"][0]["effect"] == record.effects[0].effect.tolist()
    assert found["effects"][1]["dictionary"]["site"] == "mlp_in.1"
    assert found["completeness"][0]["sum"] == pytest.approx(1.875)
    assert found["removed"][0] == {"layer": 0, "position": 2, "feature": 900, "predicted": -2.0, "actual": -1.75}
    assert [token["read"] for token in found["tokens"]] == [False] + [True] * 5
    rows = [json.loads(line) for line in report.to_jsonl(record).splitlines()]
    assert len(rows) == 6
    assert rows[2]["feature_id"] == 900 and rows[2]["actual"] == -1.75 and rows[2]["site"] == "resid_post.2"
    assert "actual" not in rows[1]
    assert rows[5]["token"] == PAYLOADS[0]


def test_the_correlation_is_of_three_or_more_that_differ():
    record = attribution()
    assert record.correlation == pytest.approx(0.97, abs=0.03)
    assert attribution(removed=record.removed[:2]).correlation is None
    assert attribution(removed=record.removed[:1] * 4).correlation is None


def test_the_page_shades_by_sign_and_shows_sums_and_points():
    page = to_html(attribution())
    words = re.search(r'<p class="words".*?</p>', page, re.S)[0]
    assert 'class="token against-8" title="·sea #2: features −2.25' in words
    assert re.search(r'class="token for-7" title="The #1', words)
    assert 'class="token unread special"' in words
    assert '<rect class="against" x="-100.0"' in page and '<rect class="for" x="0"' in page
    assert "https://www.neuronpedia.org/gemma-3-270m/2-gemmascope-2-res-16k/900" in page
    assert page.count('class="point"') == 4 and "correlation <b>0.9" in page
    assert re.search(r"actual change</th><td>\+2\.00", page)
    assert "Predicted against actual" not in to_html(attribution(removed=()))


def test_lenses_as_tables():
    text = printed(lambda console: lens_report.render_features(feature_lens(), console))
    assert "50 % of the top tokens that came with it" in text
    assert re.search(r"7 +·Paris \+3", text)
    text = printed(lambda console: lens_report.render_residual(residual_lens(), console, position=2))
    assert "after ·sea, token 2" in text
    assert len(re.findall(r"^ *\d ", text, re.M)) == 4


def test_lenses_as_json():
    found = json.loads(lens_report.to_json(feature_lens()))
    assert found["agreement"] == 0.5 and found["features"][0]["top"][1]["text"] == PAYLOADS[0]
    assert len(lens_report.to_jsonl(feature_lens()).splitlines()) == 2
    found = json.loads(lens_report.to_json(residual_lens()))
    assert len(found["rows"]) == 24
    rows = [json.loads(line) for line in lens_report.to_jsonl(residual_lens()).splitlines()]
    assert rows[7]["layer"] == 1 and rows[7]["position"] == 1
    assert rows[7]["final_rank"] == residual_lens().rank[1, 1]


@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_stay_texts(name):
    page = PAGES[name]()
    for payload in PAYLOADS:
        if "<" in payload:
            assert payload not in page
    assert "default-src &#39;none&#39;" in page
    assert page.count("<script") == page.count("</script>") <= 2
    assert "style=" not in page.split("<body>")[1]


@pytest.mark.parametrize(
    "record", [attribution(), feature_lens(), residual_lens()], ids=lambda each: type(each).__name__
)
def test_notebook_views_are_fragments_without_scripts(record):
    html = record._repr_html_()
    assert html.startswith("<div") and html.endswith("</div>")
    assert "<script" not in html and "<img" not in html
    assert "Paris" in html or "−2.00" in html
