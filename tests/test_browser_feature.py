"""Pages of features in a real browser: one, a folder of many, and the evidence in the report of an analysis."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from evidence_sample import write_evidence
from gemlens.files import write
from gemlens.lm.vocabulary import Vocabulary
from gemlens.records.feature import FeatureLabel
from gemlens.report.feature_folder import write_features
from gemlens.report.feature_html import feature_to_html
from gemlens.report.html import to_html
from gemlens.scope.evidence import load_evidence
from gemlens.study.feature import feature_page, feature_pages
from report_sample import PAYLOADS, sample
from test_browser_report import CONTRAST, browser, pytestmark  # noqa: F401
from tiny import published_config, random_tensors, write_dictionary

ID = "resid_post/layer_2_width_200_l0_small"
WIDTH = 200
WORDS = "the sea was calm and over of boat sails a far island where nobody had been before but gulls".split(" ")  # noqa: SIM905
PIECES = ["<pad>", "<eos>", "<bos>", "\n", "<0xF0>", *PAYLOADS, *(f"▁{word}" for word in WORDS)]
VOCABULARY = Vocabulary("tiny", tuple(PIECES), frozenset({0, 1, 2}))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    root = tmp_path_factory.mktemp("scope")
    folder = write_dictionary(root / ID, random_tensors(16, WIDTH), published_config(2, width=WIDTH))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, len(PIECES), (30, 60), generator=generator)
    tokens[:, 0] = 2
    activations = (torch.randn(30, 60, WIDTH, generator=generator) - 1).relu() * 40
    activations[:, 0] = activations[..., 3] = 0
    found = write_evidence(folder, activations, tokens, k=100)
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "examples.safetensors")
    for end in ("top", "bottom"):
        stored[f"{end}_tokens"] = torch.randint(3, len(PIECES), found["top_tokens"].shape, generator=generator)
    save_file(stored, folder / "examples.safetensors")
    return load_evidence(str(root), ID)


@pytest.fixture(scope="module")
def folder(evidence, tmp_path_factory):
    labels = {70: FeatureLabel("calm <b>seas</b>", "a person", "0.9"), 130: FeatureLabel(PAYLOADS[0], PAYLOADS[1])}
    pages = feature_pages(evidence, range(WIDTH), vocabulary=VOCABULARY, labels=labels, per_level=3)
    return write_features(pages, range(WIDTH), tmp_path_factory.mktemp("folder"))


@pytest.fixture
def visit(browser):  # noqa: F811
    """Open a file; afterwards hold that pages asked for nothing but files of their own folder, and said nothing."""
    with contextlib.ExitStack() as stack:
        checks = []

        def open_page(path, *, hash="", scheme="light", width=1280, script=True):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=script
            )
            page = stack.enter_context(contextlib.closing(context)).new_page()
            requests, noise = [], []
            page.on("request", lambda request: requests.append(request.url))
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.on("dialog", lambda dialog: (noise.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.goto(path.as_uri() + hash)
            checks.append((path.parent.as_uri(), requests, noise))
            return page

        yield open_page
        for root, requests, noise in checks:
            assert noise == []
            assert all(url.startswith((root.removesuffix("/pages"), "data:")) for url in requests)


@pytest.fixture
def one(evidence, tmp_path):
    page = feature_page(evidence, 8, vocabulary=VOCABULARY, label=FeatureLabel(PAYLOADS[0], PAYLOADS[1], PAYLOADS[2]))
    write(feature_to_html(page), tmp_path / "feature.html")
    return page, tmp_path / "feature.html"


@pytest.mark.parametrize("script", [True, False])
def test_the_page_of_one_is_complete_without_a_script(visit, one, script):
    record, path = one
    page = visit(path, script=script)
    assert page.locator("h1").text_content() == record.label.text
    assert page.locator(".level li").count() == len(record.examples)
    shown = page.locator(".level li .value").all_text_contents()
    assert [float(text.replace(",", "")) for text in shown] == pytest.approx(
        [e.activation for e in record.examples], abs=1
    )
    peaks = page.locator(".words .peak").all_text_contents()
    for text, example in zip(peaks, record.examples, strict=True):
        token = example.tokens[example.peak]
        assert text.replace("↵", "\n") == token.text.removeprefix(" ") or token.text in ("", "\n") or "\\" in text
    assert page.locator(".chart.activations .bar").count() == sum(count > 0 for count in record.histogram.counts)
    assert page.locator(".bars.promoted li").count() == 10
    assert page.locator(".words .special").count() == sum(
        token.is_special for e in record.examples for token in e.tokens
    )


def test_shades_follow_activations(visit, one):
    page = visit(one[1])
    ground = "e => getComputedStyle(e).backgroundColor"
    strongest, weakest = page.locator(".words .peak").first, page.locator(".words .peak").last
    assert strongest.evaluate("e => getComputedStyle(e).getPropertyValue('--share')").strip() == "100"
    assert strongest.evaluate(ground) != weakest.evaluate(ground)
    assert page.locator(".words .cut").first.evaluate(ground) == "rgba(0, 0, 0, 0)" or "/ 0" in page.locator(
        ".words .cut"
    ).first.evaluate(ground)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_are_legible(visit, one, scheme):
    page = visit(one[1], scheme=scheme)
    contrast = CONTRAST.replace("cell.closest('.text')", "document.body").replace(
        "cell.closest('.token') ?? cell", "cell"
    )
    for place in (".words .peak", ".level .value", ".hint", "dt", ".source span", "h1"):
        assert page.locator(place).first.evaluate(contrast) >= 4.5, place


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_sticks_out(visit, one, folder, width):
    for path in (one[1], folder, folder.parent / "pages" / "00001.html"):
        page = visit(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_only_text(visit, one, folder):
    for path, hash in ((one[1], ""), (folder, ""), (folder.parent / "pages" / "00002.html", "#f130")):
        page = visit(path, hash=hash)
        assert page.evaluate("window.__xss") is None
        assert page.locator("main img, main iframe, main script").count() == 0
    assert PAYLOADS[0] in page.locator("article:target h1").text_content()


def test_the_index_finds_features_by_number_label_token_and_text(visit, folder):
    page = visit(folder)
    ids = lambda: [int(text) for text in page.locator("#rows .id").all_text_contents()]  # noqa: E731
    assert ids() == list(range(WIDTH))
    assert page.locator("#count").text_content() == "200 of 200"
    page.locator("#search").fill("70")
    assert ids() == [70]
    page.locator("#search").fill("7")
    assert ids()[:11] == [7, *range(70, 80)]  # then those whose texts hold a 7
    page.locator("#search").fill("CALM <b>")
    assert ids() == [70]
    page.locator("#search").fill("no such thing anywhere")
    assert ids() == []
    assert page.locator("#rows").text_content() == "No feature says so."
    page.locator("#search").fill("")
    page.locator("#sort").select_option("rare")
    assert ids()[-1] == 3  # it never fired: that is no rarity
    page.locator("#sort").select_option("strong")
    strongest = ids()[0]
    page.locator("#search").fill("70")
    page.keyboard.press("Enter")
    page.wait_for_url("**/pages/00001.html#f70")
    assert page.locator("article:visible").count() == 1
    assert page.locator("article:visible h1").text_content() == "calm <b>seas</b>"
    assert page.title() == "calm <b>seas</b> · gemlens"
    page.locator("#back").click()
    page.wait_for_url("**/index.html")
    assert strongest != 3


def test_arrows_lead_through_features_and_files_and_neighbours_are_links(visit, folder):
    page = visit(folder.parent / "pages" / "00000.html", hash="#f62")
    heading = lambda: page.locator("article:visible h1").text_content()  # noqa: E731
    assert heading() == "Feature 62"
    assert page.locator("#back").bounding_box()["y"] >= 0  # the way back is in sight
    page.keyboard.press("ArrowRight")
    assert heading() == "Feature 63"
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/00001.html#f64")
    assert heading() == "Feature 64"
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/00000.html#f63")
    link = page.locator("article:visible .related.neighbours a").first
    name = link.text_content()
    link.click()
    page.wait_for_url(f"**#f{name}")
    assert page.locator("article:visible").get_attribute("id") == f"f{name}"


def test_without_a_script_the_folder_can_still_be_browsed(visit, folder):
    page = visit(folder, script=False)
    links = page.locator(".files a")
    assert links.all_text_contents() == ["0 to 63", "64 to 127", "128 to 191", "192 to 199"]
    links.nth(1).click()
    page.wait_for_url("**/00001.html")
    assert page.locator("article:visible h1").text_content() == "Feature 64"


def test_a_feature_that_never_fired_says_so(visit, folder):
    page = visit(folder.parent / "pages" / "00000.html", hash="#f3")
    assert page.locator("article:visible .empty h2").text_content() == "It never fired"
    assert page.locator("article:visible .level li").count() == 0


def test_the_report_of_an_analysis_shows_evidence_where_a_reader_points(visit, evidence, tmp_path):
    analysis = sample()
    named = sorted({f.feature_id for token in analysis.tokens for f in token.features})
    pages = [feature_page(evidence, at % WIDTH, vocabulary=VOCABULARY, per_level=2) for at in range(len(named))]
    known = {0: dict(zip(named, pages, strict=True))}
    del known[0][named[5]]
    write(to_html(analysis, evidence=known, labels={0: {named[0]: PAYLOADS[0]}}), tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    button = page.locator("#strongest .choose").first
    feature = int(button.get_attribute("data-feature"))
    assert page.locator("#glance").is_hidden()
    button.hover()
    page.wait_for_selector("#glance:not([hidden])")
    card = page.locator("#glance")
    assert card.locator("h2").text_content().startswith(f"Feature {feature}")
    record = known[0].get(feature)
    assert record is not None
    first = card.locator("li .value").first.text_content()
    assert float(first.replace(",", "")) == pytest.approx(record.max_activation, abs=1)
    box, row = card.bounding_box(), button.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= row["x"] and 0 <= box["y"] <= 900 - box["height"]
    page.mouse.move(5, 5)
    assert card.is_hidden()
    button.click()
    assert page.locator("#evidence h2").text_content().startswith(f"Feature {feature}")
    page.locator("#clear").click()
    assert page.locator("#evidence").is_hidden()
    assert page.evaluate("window.__xss") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert np.isfinite(record.max_activation)
