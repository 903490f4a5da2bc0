"""The pages of a steering and an ablation in a real browser, of hostile text: nothing runs, nothing sticks out."""

from __future__ import annotations

import contextlib

import pytest

from gemlens.files import write
from gemlens.records.edits import AblatedFeature, Ablation, Dose, EditedToken, NextToken, SteeredToken, Steering
from gemlens.report import ablation as ablation_report
from gemlens.report import steering as steering_report
from gemlens.report.edits_page import ablation_to_html, steering_to_html
from report_sample import PROVENANCE, SAE
from test_browser_report import browser, pytestmark  # noqa: F401

HOSTILE = [
    "<b>",
    " [red]",
    "\n",
    "</script><script>alert(1)</script>",
    "\t",
    "&amp;",
    "\x1b[31m",
    "\ud800",
    " 日本" * 40,
]


def steering() -> Steering:
    tokens = tuple(SteeredToken(5, text, text, 2.0, kl) for text, kl in zip(HOSTILE, [0.0, 0.02, 4.0] * 3, strict=True))
    doses = tuple(Dose(strength, tokens) for strength in (-2.0, 0.0, 1.5))
    return Steering(
        prompt="".join(HOSTILE),
        system="<i>be kind</i>",
        prompt_text="",
        model_id="<model>",
        dictionary=SAE,
        features=(3, 99),
        direction=None,
        site="resid_post.12",
        mode="add",
        relative_to="max",
        maxima=(4000.0, 12.5),
        positions="all tokens",
        max_new_tokens=9,
        doses=doses,
        provenance=PROVENANCE,
        warnings=("<u>careful</u>",),
    )


def ablation() -> Ablation:
    tokens = tuple(
        EditedToken(i, 7, text, text, i == 0, i > 0, 0.5 * i, None if i == 8 else 1.0, None if i == 8 else 2.0)
        for i, text in enumerate(HOSTILE)
    )
    return Ablation(
        prompt="".join(HOSTILE),
        system=None,
        prompt_text="",
        model_id="<model>",
        dictionaries=(SAE,),
        positions="all tokens",
        tokens=tokens,
        features=(AblatedFeature(0, 3, 12.0, 3, 2, 0.1, 0.2, -0.1), AblatedFeature(0, 4, 0.0, None, 0, 0.0, 0.0, 0.0)),
        next_tokens=tuple(NextToken(5, text, 0.9 / (i + 1), 0.1) for i, text in enumerate(HOSTILE)),
        answer_before=HOSTILE[3],
        answer_after=HOSTILE[5],
        provenance=PROVENANCE,
    )


PAGES = {"steering": lambda: steering_to_html(steering()), "ablation": lambda: ablation_to_html(ablation())}


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_runs_nothing_and_fits(name, width, browser, tmp_path):  # noqa: F811
    path = tmp_path / "page.html"
    write(PAGES[name](), path)
    noise, requests = [], []
    with contextlib.closing(browser.new_context(viewport={"width": width, "height": 900})) as context:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: noise.append(message.text))
        page.on("dialog", lambda dialog: noise.append(dialog.message))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        text = page.inner_text("main")
        shown = page.eval_on_selector_all(".w", "all => all.map(e => e.textContent)")
    assert noise == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}
    assert "</script><script>alert(1)</script>" in text and "<b>" in shown
    if name == "steering":
        assert "unsteered" in text and "https://www.neuronpedia.org" not in text and "<u>careful</u>" in text


@pytest.mark.parametrize(
    ("report", "record"), [(steering_report, steering()), (ablation_report, ablation())], ids=["steering", "ablation"]
)
def test_the_terminal_json_and_notebook_take_the_same_text_as_it_is(report, record, capsys):
    import json

    from rich.console import Console

    report.render(record, Console(width=100, markup=False, highlight=False))
    printed = capsys.readouterr().out
    assert "[red]" in printed and "\x1b[31m" not in printed
    assert json.loads(report.to_json(record))["prompt"] == "".join(HOSTILE)
    assert all(json.loads(row) for row in report.to_jsonl(record).splitlines())
    drawn = record._repr_html_()
    assert "<script" not in drawn and "&lt;b&gt;" in drawn
