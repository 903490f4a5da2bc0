"""Evidence over HTTP ranges: equal to a full read, in few bytes, and not fooled by the server."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from evidence_sample import examples_of, random_case, write_google
from fake_hub import FakeHub, connected
from gemlens import ranges
from gemlens.errors import AccessError, NetworkError, NotFoundError
from gemlens.ranges import find_parts
from gemlens.scope.evidence import load_evidence
from gemlens.study.feature import feature_page
from tiny import files_below, published_config, random_tensors, write_dictionary

REPO = "google/gemma-scope-2-270m-it"
ID = "resid_post/layer_2_width_40_l0_small"
FILE = f"{ID}/examples.safetensors"


def tensors_of(n_seq=2000, length=64, width=40, k=200):
    """Large enough that a feature is a small part of it."""
    activations, tokens = random_case(n_seq, length, width)
    found = examples_of(activations, tokens, k=k)
    return found | {"logit_effects": torch.randn(width, k)}


@pytest.fixture(scope="module", params=[0, 1, 7, 20_000])
def tree(request, tmp_path_factory):
    """A repository's files; the header of odd length, or longer than what is read at once."""
    root = tmp_path_factory.mktemp("repo")
    folder = write_dictionary(root / ID, random_tensors(16, 40), published_config(2))
    write_google(folder, tensors_of(), pad_header=request.param)
    return root


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ranges, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def hub(tree, hub_home):
    with FakeHub({REPO: files_below(tree)}) as server, connected(server.url, home=hub_home):
        yield server


def test_a_feature_over_ranges_is_that_of_a_full_read_in_few_bytes(hub, tree):
    here = load_evidence(str(tree), ID)
    there = load_evidence(REPO, ID)
    assert not there.is_here
    assert hub.bytes_of("examples.safetensors") <= 1 << 15  # the header, however long its padding
    for feature in (0, 3, 39):
        before = hub.bytes_of("safetensors")
        want, found = (feature_page(evidence, feature) for evidence in (here, there))
        assert hub.bytes_of("safetensors") - before <= 1 << 16
        assert found.levels == want.levels
        assert (found.promoted, found.frequency, found.histogram) == (want.promoted, want.frequency, want.histogram)
        # One row of the decoder comes by a range too; all of it would have to be downloaded.
        assert found.basis == want.basis != ()
        assert found.neighbours == ()
    size = len(hub[REPO].files[FILE])
    assert hub.bytes_of("examples.safetensors") < size / 3
    assert there.info.revision == hub[REPO].commit
    assert all(request.range for request in hub.requests("GET", "examples.safetensors"))


def test_a_page_of_published_size_is_less_than_a_megabyte(tmp_path, hub_home):
    """1,000 examples a feature and sequences of 512: what Gemma Scope 2 has, of a few features only."""
    folder = write_dictionary(tmp_path / ID, random_tensors(16, 4), published_config(2, width=4))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(300, 360, (3000, 512), generator=generator)
    tokens[:, 0] = 2
    write_google(
        folder,
        {
            "activations": torch.rand(4, 1000, generator=generator).sort(descending=True).values * 900,
            "positions": torch.randint(1, 512, (4, 1000), generator=generator),
            "seq_ids": torch.randint(0, 3000, (4, 1000), generator=generator),
            "tokens": tokens,
            "feature_frequencies": torch.rand(4).double(),
            "logit_effects": torch.rand(4, 1000),
            "top_tokens": torch.full((4, 10), 310),
            "top_logits": torch.rand(4, 10),
            "bottom_tokens": torch.full((4, 10), 311),
            "bottom_logits": torch.rand(4, 10),
        },
    )
    with FakeHub({REPO: files_below(tmp_path)}) as server, connected(server.url, home=hub_home):
        page = feature_page(load_evidence(REPO, ID), 2)
        assert len(page.examples) == 32
        assert server.bytes_of("") <= 200_000  # of 6 MB here, 0.8 GB there


def test_a_file_in_the_cache_is_not_asked_for(hub):
    whole = load_evidence(REPO, ID, whole=True)
    assert whole.is_here
    sent = hub.bytes_of("examples.safetensors")
    page = feature_page(load_evidence(REPO, ID), 5)
    assert hub.bytes_of("examples.safetensors") == sent
    assert page.on_file == 200
    assert load_evidence(REPO, ID).info.revision == hub[REPO].commit


def test_a_server_that_ignores_ranges_sends_the_file_once_and_that_is_said(hub, tree):
    hub[REPO].ignores_ranges = True
    with pytest.warns(
        UserWarning, match="the server answers with all .* MB of .*examples.safetensors where a part was"
    ):
        evidence = load_evidence(REPO, ID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, want = feature_page(evidence, 7), feature_page(load_evidence(str(tree), ID), 7)
    assert found.levels == want.levels
    # Once as the refused range, once into the cache.
    assert len(hub.requests("GET", "examples.safetensors")) == 2


@pytest.mark.parametrize("lie", ["total", "window", "short", "long", "length"])
def test_a_server_that_lies_is_refused(hub, lie):
    evidence = load_evidence(REPO, ID)
    hub[REPO].lie = lie
    with pytest.raises(NetworkError) as caught:
        if lie == "length":
            load_evidence(REPO, ID)
        else:
            evidence.examples.feature(4)
    assert "\n" not in str(caught.value)
    assert "examples.safetensors" in str(caught.value)
    hub[REPO].lie = ""
    assert len(evidence.examples.feature(4).activations) == 200


def test_a_connection_that_breaks_off(hub):
    evidence = load_evidence(REPO, ID)
    hub[REPO].cut = 10
    with pytest.raises(NetworkError, match="broke off"):
        evidence.examples.feature(4)


@pytest.mark.parametrize(("status", "error"), [(503, NetworkError), (404, NotFoundError)])
def test_a_server_that_falls_ill(hub, status, error):
    evidence = load_evidence(REPO, ID)
    hub[REPO].broken = status
    with pytest.raises(error):
        evidence.examples.feature(4)


def test_gated_evidence_names_the_licence(hub):
    hub[REPO].gated = True
    with pytest.raises(AccessError, match="is gated: accept its licence"):
        load_evidence(REPO, ID)


def test_offline_without_a_cache(tree, hub_home):
    with FakeHub({REPO: files_below(tree)}) as server, connected(server.url, home=hub_home, offline=True):
        with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set"):
            load_evidence(REPO, ID)
        assert server.log == []


def test_an_id_that_does_not_exist_names_the_nearest_and_one_without_evidence_says_so(hub):
    with pytest.raises(NotFoundError, match="did you mean layer_2_width_40_l0_small"):
        load_evidence(REPO, "resid_post/layer_3_width_40_l0_small")
    del hub[REPO].files[FILE]
    with pytest.raises(NotFoundError, match=f"{ID} has no examples.safetensors beside its tensors; .*collect features"):
        load_evidence(REPO, ID)


def test_any_spans_in_any_order_are_the_files_bytes(hub):
    content = hub[REPO].files[FILE]
    parts = find_parts(REPO, FILE)
    assert parts.size == len(content)
    generator = np.random.default_rng(0)
    spans = [
        (int(at), int(size))
        for at, size in zip(
            generator.integers(0, len(content) - 5000, 60), generator.integers(0, 5000, 60), strict=True
        )
    ]
    asked = len(hub.log)
    assert parts.read(spans) == [content[at : at + size] for at, size in spans]
    assert len(hub.log) - asked < 60  # those that nearly touch are one
    assert parts.read([]) == []
    assert parts.read([(0, len(content))]) == [content]
    assert find_parts(REPO, "no/such/file") is None


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_goodtokengoodtoken")
    evidence = load_evidence(REPO, ID)
    evidence.examples.feature(1)
    assert {request.token for request in hub.log if "examples" in request.path} == {"hf_goodtokengoodtoken"}
