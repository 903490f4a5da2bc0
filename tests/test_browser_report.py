"""The page of an analysis in a real browser: pinning, shading, keys, themes, and that nothing leaks in or out."""

from __future__ import annotations

import contextlib
import os
import shutil

import numpy as np
import pytest

from gemlens.files import write
from gemlens.report import visible
from gemlens.report.html import to_html
from report_sample import PAYLOADS, SAE, build, hostile, long_sample, sample

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[dev]'")
CHROMIUM = os.environ.get("GEMLENS_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt install chromium, or set GEMLENS_CHROMIUM to a Chromium or Chrome"
)

FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SEA = 9  # index of " sea" in the sample


@pytest.fixture(scope="module")
def browser():
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open an analysis from a file; afterwards hold that it asked for nothing, said nothing and raised nothing."""
    with contextlib.ExitStack() as stack:
        checks = []

        def open_page(analysis, *, labels=None, scheme="light", width=1280, quiet=True):
            path = tmp_path / "report.html"
            write(to_html(analysis, labels=labels), path)
            context = stack.enter_context(
                contextlib.closing(browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}))
            )
            page = context.new_page()
            requests, noise = [], []
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.on("dialog", lambda dialog: (noise.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.goto(path.as_uri())
            if quiet:
                checks.append((path, requests, noise))
            return page

        yield open_page
        for path, requests, noise in checks:
            assert noise == []
            assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def token(page, i):
    return page.locator(".token").nth(i)


def shares(page) -> list[float]:
    return page.eval_on_selector_all(".token", "all => all.map(t => Number(t.style.getPropertyValue('--share')))")


def listed(page) -> list[int]:
    return [int(text) for text in page.locator("#features .id").all_text_contents()]


def features(analysis, i, k=0) -> list[int]:
    return [f.feature_id for f in analysis.tokens[i].features if f.dictionary == k]


def test_text_is_complete_and_shaded(visit):
    analysis = sample()
    page = visit(analysis)
    assert page.locator(".token").count() == len(analysis.tokens)
    words = "".join(page.locator(".words").all_text_contents())
    shown = "".join(t.text if t.text else t.token for t in analysis.tokens).replace("\u202e", r"\u202e")
    assert words == shown
    assert page.locator(".run.generated .token").count() == 26
    found = shares(page)
    assert found[0] == 0  # BOS is not read
    assert found[1] == 100  # a control token far above the scale
    assert min(found[1:]) > 8
    assert page.locator("#scale-max").text_content() == "824+"
    ramp = page.locator(".legend .scale i").evaluate("e => getComputedStyle(e).backgroundImage")
    assert ramp.startswith("linear-gradient")
    lines = [token(page, i).bounding_box()["y"] for i in (22, 24)]  # around the "\n\n" token
    assert lines[1] - lines[0] > 60


def test_click_pins_and_lists_features(visit):
    analysis = sample()
    page = visit(analysis)
    token(page, SEA).click()
    assert token(page, SEA).get_attribute("aria-selected") == "true"
    assert listed(page) == features(analysis, SEA)
    assert f"L0 {analysis.tokens[SEA].l0}" in page.locator("#token-head").text_content()
    assert page.locator("#live").text_content().startswith("Pinned ·sea, token 9.")
    token(page, SEA + 1).hover()  # a pinned token stays
    assert listed(page) == features(analysis, SEA)
    assert f"L0 {analysis.tokens[SEA + 1].l0}" in page.locator("#readout").text_content()
    token(page, SEA + 1).click()
    assert page.locator("[aria-selected=true]").count() == 1
    assert listed(page) == features(analysis, SEA + 1)
    page.locator("#unpin").click()
    assert page.locator("[aria-selected=true]").count() == 0
    token(page, SEA).hover()  # and with none pinned, the panel follows
    assert listed(page) == features(analysis, SEA)


def test_bos_and_pieces_of_characters(visit):
    analysis = sample()
    page = visit(analysis)
    token(page, 0).click()
    assert listed(page) == []
    assert "Not read" in page.locator("#token-head").text_content()
    assert token(page, 0).get_attribute("aria-label") == "<bos>, not read"
    piece = token(page, 32)
    assert piece.text_content() == "<0xF0>"
    color = "e => getComputedStyle(e).color"
    assert piece.locator(".piece").evaluate(color) != piece.evaluate(color)
    blank = token(page, 30).bounding_box()
    assert blank["width"] > 10


def test_everything_works_by_keyboard(visit):
    analysis = sample()
    page = visit(analysis)
    focused = "document.activeElement.getAttribute('aria-label')"
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.token')"):
            break
    assert page.evaluate(focused) == "<bos>, not read"
    assert page.locator(".token[tabindex='0']").count() == 1
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "·a"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert listed(page) == features(analysis, 5)
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > token(page, 5).bounding_box()["y"] + 10
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    page.keyboard.press(" ")
    assert listed(page) == features(analysis, len(analysis.tokens) - 1)
    page.keyboard.press("Escape")
    assert page.locator("[aria-selected=true]").count() == 0
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#features .choose')"):
            break
    page.keyboard.press("Enter")
    assert page.locator("#shading-name").text_content() == f"Feature {features(analysis, 1)[0]}"
    page.keyboard.press("Escape")  # the pin first,
    assert page.evaluate("document.activeElement.matches('.token')")
    assert page.locator("#shading-name").text_content().startswith("Feature")
    page.keyboard.press("Escape")  # then the feature
    assert page.locator("#shading-name").text_content() == "Strongest activation of each token"


def test_choosing_a_feature_shades_the_text_by_it(visit):
    analysis = sample()
    page = visit(analysis, labels={0: {13316: "the <b>sea</b>"}})
    before = shares(page)
    token(page, SEA).click()
    choose = page.locator("#features .choose[data-feature='13316']")
    assert choose.locator(".label").text_content() == "the <b>sea</b>"
    assert page.locator("#features .label").count() == 1
    choose.click()
    column = analysis.activations[0].column(13316)
    expected = np.where(column > 0, 8 + 92 * column / column.max(), 0)
    np.testing.assert_allclose(shares(page), expected, atol=0.2)
    assert page.locator("#scale-max").text_content() == visible.number(column.max())
    assert page.locator(".choose[aria-pressed=true]").count() == 2  # in both lists
    assert "on 20 of 44 tokens" in page.locator("#shading").text_content()
    page.locator("#clear").click()
    assert shares(page) == before


def test_strongest_list_leads_to_the_token(visit):
    page = visit(long_sample(1200))
    jump = page.locator("#strongest .jump").first
    target = int(jump.get_attribute("data-token"))
    jump.click()
    assert token(page, target).get_attribute("aria-selected") == "true"
    box = token(page, target).bounding_box()
    assert 0 < box["y"] < 900


def test_dictionaries_can_be_switched(visit):
    analysis = sample(2)
    page = visit(analysis)
    token(page, SEA).click()
    page.locator("#features .choose").first.click()
    before = shares(page)
    page.locator("#dictionary").select_option("1")
    assert listed(page) == features(analysis, SEA, 1)
    assert shares(page) != before
    assert page.locator("#shading-name").text_content() == "Strongest activation of each token"
    assert f"L0 {len(analysis.activations[1].row(SEA)[0])}" in page.locator("#token-head").text_content()
    assert visit(sample(1)).locator("#dictionary").count() == 0


def test_links_only_where_an_id_is_known(visit):
    page = visit(sample(2))
    token(page, SEA).click()
    link = page.locator("#features a").first
    assert link.get_attribute("href") == f"https://www.neuronpedia.org/{SAE.neuronpedia}/{listed(page)[0]}"
    assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer")
    page.locator("#dictionary").select_option("1")
    assert page.locator("a").count() == 0


CONTRAST = """cell => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const light = (...layers) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = getComputedStyle(cell.closest('.text')).backgroundColor;
    const shade = getComputedStyle(cell.closest('.token') ?? cell).backgroundColor;
    const [a, b] = [light(ground, shade), light(ground, shade, getComputedStyle(cell).color)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_are_legible(visit, scheme):
    page = visit(sample(), scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    for theme in range(2):
        for mode in range(2):
            if mode:
                page.locator("#strongest .choose").first.click()
            page.wait_for_timeout(250)  # the shade fades in
            strongest = int(np.argmax(shares(page)))
            assert shares(page)[strongest] == 100
            for i in (strongest, 0):
                assert token(page, i).evaluate(CONTRAST) >= 4.5, (theme, mode, i)
            for small in ("#readout", ".hint >> nth=0", "dt >> nth=0"):
                assert page.locator(small).evaluate(CONTRAST.replace("cell.closest('.text')", "document.body")) >= 4.5
        page.locator(".choose[data-feature='8239']").first.click()  # strongest on a dimmed byte piece
        page.wait_for_timeout(250)
        assert shares(page)[34] == 100
        assert token(page, 34).locator(".piece").evaluate(CONTRAST) >= 4.5
        page.locator("#clear").click()
        if theme == 0:
            page.locator("#theme").click()
            assert page.evaluate(ground) != before
    dark = page.locator("#theme").get_attribute("aria-pressed") == "true"
    assert dark == (scheme == "light")
    page.reload()
    assert (page.locator("#theme").get_attribute("aria-pressed") == "true") == dark


def test_the_theme_toggle_works_without_storage(visit, browser, tmp_path):
    write(to_html(sample()), tmp_path / "report.html")
    with contextlib.closing(browser.new_context(color_scheme="light")) as context:
        page = context.new_page()
        page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused') }})")
        page.goto((tmp_path / "report.html").as_uri())
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        assert page.locator("#theme").get_attribute("aria-pressed") == "true"
        assert errors == []
        token(page, SEA).click()
        assert listed(page)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(visit, width):
    for analysis in (sample(), hostile()):
        page = visit(analysis, width=width)
        token(page, SEA).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        panel, pinned = page.locator("#panel").bounding_box(), token(page, SEA).bounding_box()
        assert panel["y"] < 900 and panel["x"] + panel["width"] <= width
        assert pinned["x"] + pinned["width"] <= panel["x"] or pinned["y"] + pinned["height"] <= panel["y"] + 1


def test_hostile_strings_are_only_strings(visit):
    analysis = hostile()
    page = visit(analysis, labels={0: {f.feature_id: PAYLOADS[0] for f in analysis.tokens[1].features}})
    for i in range(1, len(analysis.tokens), 5):
        token(page, i).click()
        page.locator("#features .choose").first.click()
    page.locator("#dictionary").select_option("1")
    token(page, 2).click()
    assert page.evaluate("window.__xss") is None
    text = page.locator("body").inner_text()
    for payload in PAYLOADS:
        if "\u2028" not in payload:
            assert payload in text
    assert "window.__xss=17" in text
    assert page.locator("main img, main iframe, main a").count() == 0
    assert page.locator("body > :not(header, main, footer, p, noscript, script)").count() == 0
    assert page.locator("script").count() == 2


def test_the_policy_stops_scripts_that_are_not_ours(visit):
    page = visit(sample(), quiet=False)  # each refusal is a message on the console
    page.evaluate("""() => {
        window.blocked = [];
        document.addEventListener('securitypolicyviolation', e => window.blocked.push(e.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.__xss = 99';
        document.body.append(script);
        const image = new Image();
        image.src = 'file:///nowhere.png';
        document.body.append(image);
    }""")
    page.wait_for_function("window.blocked.length === 2")
    assert page.evaluate("window.__xss") is None
    assert page.evaluate("window.blocked.sort()") == ["img-src", "script-src-elem"]


def test_one_token_and_many(visit):
    page = visit(build([("<bos>", "<bos>", False)], (SAE,), prompt="", system=None))
    assert page.locator(".token").count() == 1
    page = visit(long_sample(2000))
    spent = page.evaluate("""() => {
        const start = performance.now();
        document.querySelector('#strongest .choose').click();
        document.body.offsetHeight;
        return performance.now() - start;
    }""")
    assert spent < 2000  # a tenth of that on an idle laptop
