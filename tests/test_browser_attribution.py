"""Pages of attributions and lenses in a real browser: shading by a feature, no script needed, nothing sticks out."""

from __future__ import annotations

import contextlib

import pytest

from attribution_sample import attribution, feature_lens, residual_lens
from gemlens.files import write
from gemlens.report.attribution_page import to_html
from gemlens.report.lens_page import features_to_html, residual_to_html
from test_browser_report import browser, pytestmark  # noqa: F401

PAGES = {
    "attribution": lambda: to_html(attribution()),
    "features": lambda: features_to_html(feature_lens()),
    "residual": lambda: residual_to_html(residual_lens()),
}


@pytest.fixture
def visit(browser, tmp_path):  # noqa: F811
    """Open a page; afterwards hold that it asked for nothing, said nothing and ran nothing of what texts hold."""
    with contextlib.ExitStack() as stack:
        noise, requests, opened = [], [], []

        def open_page(name="attribution", *, scheme="light", width=1280, script=True):
            path = tmp_path / f"{name}.html"
            write(PAGES[name](), path)
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=script
            )
            page = stack.enter_context(contextlib.closing(context)).new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.goto(path.as_uri())
            opened.append((page, path.as_uri()))
            return page

        yield open_page
        assert noise == []
        assert {url for url in requests if not url.startswith("data:")} <= {uri for _, uri in opened}
        assert all(page.evaluate("window.__xss") is None for page, _ in opened)


def shades(page):
    return page.eval_on_selector_all(
        ".token", "all => all.map(t => [...t.classList].find(c => /^(for|against)-/.test(c)) ?? '')"
    )


def test_a_feature_shades_the_text_and_lets_go_again(visit):
    page = visit()
    before = shades(page)
    assert before[1:3] == ["for-7", "against-8"]
    button = page.locator(".choose", has_text="7").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#shading").text_content() == "Feature 7 of resid_post.2"
    assert shades(page) == ["", "for-8", "against-3", "", "", "for-5"]  # 1.5, -0.25, 0.5
    assert page.locator(".top").first.text_content() == "1.50"
    page.keyboard.press("Escape")
    assert shades(page) == before
    button.click()
    page.locator("#clear").click()
    assert shades(page) == before and not page.locator("#clear").is_visible()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(visit, name, width):
    page = visit(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.eval_on_selector_all("main > *", "all => all.every(e => e.getBoundingClientRect().right <= innerWidth)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_there_without_a_script(visit, scheme):
    page = visit(scheme=scheme, script=False)
    assert page.locator(".point").count() == 4
    assert "actual change" in page.locator(".sums").first.text_content()
    ground, token = (
        page.locator(which).first.evaluate("e => getComputedStyle(e).backgroundColor")
        for which in (".panel", ".against-8")
    )
    assert ground != token
