"""The page of multiple choice in a real browser: wide and narrow, and its item browser."""

from __future__ import annotations

import contextlib

import pytest

from choices_sample import record
from gemlens.files import write
from gemlens.report.choices_page import to_html
from test_browser_report import browser, pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("choices") / "choices.html"
    write(to_html(record()), found)
    return found


@pytest.fixture
def visit(browser, path):  # noqa: F811
    """Open the page; afterwards hold that it asked for nothing and said nothing."""
    with contextlib.ExitStack() as stack:
        noise, requests = [], []

        def open_page(*, width=1280, script=True):
            context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script)
            page = stack.enter_context(contextlib.closing(context)).new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.goto(path.as_uri())
            return page

        yield open_page
        assert noise == []
        assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_sticks_out(visit, width):
    page = visit(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_items_are_filtered_sorted_and_shown_by_layer(visit):
    found, page = record(), visit()
    assert page.locator(".item").count() == 24
    right = sum(found.margin(index) > 0 for index in range(24))
    page.select_option("#which", "right")
    assert page.locator(".item").count() == right
    page.select_option("#which", "all")
    page.select_option("#order", "low")
    first = page.locator(".item h3").first.inner_text()
    lowest = min(range(24), key=found.margin)
    assert first.startswith(f"#{found.items[lowest].id} ")
    page.fill("#find", "#7")
    assert page.locator(".item").count() == 1
    before = page.locator(".tops").first.inner_text()
    page.select_option("#layer", "1")
    assert page.locator(".tops").first.inner_text() != before
    ids, values = found.features[1].row(int(found.first_text[7]) + found.items[7].gold)
    best = str(ids[values.argmax()])
    assert page.locator(".tops li").first.inner_text().startswith(best + " ")


def test_tokens_are_shaded_by_how_strongly_a_feature_fires(visit):
    page = visit()
    ground = page.eval_on_selector(".words .s8", "e => getComputedStyle(e).backgroundColor")
    none = page.eval_on_selector(".words .s0", "e => getComputedStyle(e).backgroundColor")
    assert ground != none == "rgba(0, 0, 0, 0)"


def test_without_a_script_all_but_the_items_is_there(visit):
    page = visit(script=False)
    assert page.locator("figure svg").count() == 4
    assert page.locator("tbody tr").count() > 10
    assert "needs JavaScript" in page.locator("noscript").inner_text()
