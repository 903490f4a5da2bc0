"""The quality card's page in a real browser: complete without a script, wide and narrow, light and dark."""

from __future__ import annotations

import contextlib

import pytest

from gemlens.files import write
from gemlens.report.quality_page import to_html
from quality_sample import card
from test_browser_report import browser, pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("card") / "card.html"
    write(to_html(card()), found)
    return found


@pytest.fixture
def visit(browser, path):  # noqa: F811
    """Open the page; afterwards hold that it asked for nothing and said nothing."""
    with contextlib.ExitStack() as stack:
        noise, requests = [], []

        def open_page(*, scheme="light", width=1280, script=True):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=script
            )
            page = stack.enter_context(contextlib.closing(context)).new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.goto(path.as_uri())
            return page

        yield open_page
        assert noise == []
        assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


@pytest.mark.parametrize("width", [1280, 700, 360])
def test_nothing_sticks_out_and_only_the_table_scrolls(visit, width):
    page = visit(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    inside = page.eval_on_selector_all(
        "main > *, figure, .plot, .density", "all => all.every(e => e.getBoundingClientRect().right <= innerWidth)"
    )
    assert inside
    scrolls = page.eval_on_selector(".scroll", "e => e.scrollWidth > e.clientWidth")
    assert scrolls == (width == 360)


def test_lines_dots_and_bars_of_a_series_have_its_colour(visit):
    page = visit()
    fills = page.eval_on_selector_all(
        "figure:first-of-type g", "all => all.map(g => [getComputedStyle(g.querySelector('.point')).fill,"
        " getComputedStyle(g.querySelector('.series')).stroke])"
    )  # fmt: skip
    assert len({fill for fill, _ in fills}) == 3
    assert all(fill == stroke for fill, stroke in fills)
    dots = page.eval_on_selector_all(".key i", "all => all.map(i => getComputedStyle(i).backgroundColor)")
    bars = page.eval_on_selector_all(
        ".densities", "all => all.map(d => getComputedStyle(d.querySelector('.bar')).fill)"
    )
    assert dots == bars == [fill for fill, _ in fills]


def test_the_theme_follows_the_system_and_the_button(visit):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = visit(), visit(scheme="dark")
    assert ground(light) != ground(dark)
    dark.click("#theme")
    assert ground(dark) == ground(light)


def test_everything_is_there_without_a_script(visit):
    page = visit(script=False)
    assert page.locator(".plot").count() == 4
    assert page.locator("tbody tr").count() == 25 + 3 + 3 + 1  # dictionaries, headings, medians, what is wrong
    assert page.locator(".density").count() == 25
    assert page.locator(".set dd").first.inner_text().startswith("1.421")
