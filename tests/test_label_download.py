"""Labels from Neuronpedia, against a local server that speaks its protocols."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cli_helpers import assert_refused, run
from fake_neuronpedia import LAYER, MODEL, SOURCE, FakeNeuronpedia, explanation, feature, lines
from gemlens import web
from gemlens.errors import AccessError, InputError, NetworkError, NotFoundError
from gemlens.records.labels import FeatureFacts
from gemlens.scope import label_progress
from gemlens.scope.label_download import download
from gemlens.scope.label_names import Named, named
from gemlens.scope.labels import LabelStore
from label_sample import KEY, MARKUP

WIDTH = 240
SIXTEEN = "gemma-2-2b/16-gemmascope-res-16k"
SMALL = Named(KEY, "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71",
              "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", WIDTH, SOURCE)  # fmt: skip
ASKED = ["--sae-release", "gemma-scope-2b-pt-res-canonical", "--sae-id", "layer_20/width_16k/canonical"]


@pytest.fixture
def server(label_home, monkeypatch):
    with FakeNeuronpedia() as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(web.time, "sleep", lambda _seconds: None)
        yield fake


@pytest.fixture
def store(server):
    with LabelStore() as opened:
        yield opened


def rows_of_a_source(width=WIDTH):
    """Features without, with one and with several explanations, in an order that is the export's."""
    found = []
    for index in range(width):
        found += [explanation(index, f"label {index} of {n}", typeName=f"kind-{n}") for n in range(index % 3)]
    return found


def publish(fake, width=WIDTH, size=32):
    fake.publish("explanations", rows_of_a_source(width), size=size)
    fake.publish("features", [feature(index) for index in range(width)], size=size)


def texts(store):
    return {index: [each.text for each in every] for index, every in store.of(KEY).items()}


# The export


def test_all_explanations_come_to_the_features_that_their_rows_name(server, store):
    publish(server)
    counts = download(store, SMALL)
    expected = {i: [f"label {i} of {n}" for n in range(i % 3)] for i in range(WIDTH) if i % 3}
    assert texts(store) == expected
    assert (counts.found, counts.missing, counts.failed) == (160, 80, 0)
    assert counts.labels == 240
    (first, _) = store.of(KEY)[2]
    assert (first.source, first.method, first.model) == ("neuronpedia", "kind-0", "gpt-4o-mini")
    assert label_progress.facts(store, KEY)[5] == FeatureFacts((" May", " June"), ("x",), 10.5)


def test_files_are_ordered_as_text_and_their_names_say_nothing(server, store):
    """Of 240 features in files of 32, index 10 comes after 1 and before 2: no file holds a range."""
    publish(server)
    first = gzip.decompress(server.files[f"v1/{SOURCE}/features/batch-0.jsonl.gz"]).decode().splitlines()
    assert [json.loads(row)["index"] for row in first][:4] == ["0", "1", "10", "100"]
    server.files[f"v1/{SOURCE}/explanations/zzz-9.jsonl.gz"] = lines([explanation(0, "of another file's name")])
    download(store, SMALL)
    assert texts(store)[0] == ["of another file's name"]


def test_a_listing_goes_on_beyond_a_thousand_keys(server, store):
    for number in range(1003):
        server.files[f"v1/{SOURCE}/explanations/batch-{number}.jsonl.gz"] = lines(
            [explanation(number, f"label {number}")]
        )
    wide = Named(KEY, "r", "i", "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", 16384, SOURCE)
    counts = download(store, wide, facts=False, api=False)
    assert counts.found == 1003
    assert len([line for line in server.log if "list-type" in line]) == 2


def test_the_same_command_again_fetches_nothing_twice_and_what_changed_anew(server, store):
    publish(server)
    download(store, SMALL)
    before, fetched = texts(store), len(server.log)
    download(store, SMALL)
    assert len(server.log) == fetched + 2  # the two listings
    key = f"v1/{SOURCE}/explanations/batch-0.jsonl.gz"
    server.files[key] = lines([explanation(0, "new")])
    download(store, SMALL)
    assert texts(store) == before | {0: ["new"]}
    download(store, SMALL, again=True)
    assert texts(store) == before | {0: ["new"]}


def test_rows_that_cannot_be_are_left_out_and_said(server, store):
    publish(server, 3)
    server.files[f"v1/{SOURCE}/explanations/batch-9.jsonl.gz"] = gzip.compress(
        b"not json\n[]\n"
        + b"".join(
            json.dumps(row).encode() + b"\n"
            for row in [
                explanation(-1, "negative"), explanation(WIDTH, "beyond"), explanation("1e2", "no number"),
                explanation(1, "another's", layer="21-gemmascope-res-16k"), explanation(1, ""), explanation(1, "  "),
                explanation(1, "twice"), explanation(1, "twice"), explanation(1, MARKUP + "\ud800"),
            ]
        )
    )  # fmt: skip
    counts = download(store, SMALL, api=False)
    said = " ".join(counts.reasons)
    for word in ("'-1'", f"index {WIDTH} lies beyond", "'1e2'", "21-gemmascope", "not JSON", "no object"):
        assert word in said
    assert texts(store)[1] == ["label 1 of 0", "twice", MARKUP.strip().replace("\x00", "\ufffd") + "\ufffd"]


def test_half_a_gzip_costs_its_own_features_only_and_the_api_has_them(server, store):
    publish(server)
    for kind in ("features", "explanations"):
        key = f"v1/{SOURCE}/{kind}/batch-1.jsonl.gz"
        server.files[key] = server.files[key][: len(server.files[key]) // 2]
    for row in rows_of_a_source():
        known = server.features.get((MODEL, LAYER, row["index"]), {"explanations": []})
        server.answer(int(row["index"]), explanations=[*known["explanations"], row])
    counts = download(store, SMALL)
    assert any("explanations/batch-1.jsonl.gz" in reason and "damaged" in reason for reason in counts.reasons)
    assert counts.found == 160
    asked = [line for line in server.log if line.startswith("POST")]
    assert len(asked) == 2, "only those without a label, fifty at a time"
    publish(server)
    server.log.clear()
    download(store, SMALL)
    assert len([line for line in server.log if ".jsonl.gz" in line]) == 2, "they are read again once they are whole"
    assert {index: len(every) for index, every in texts(store).items()} == {i: i % 3 for i in range(WIDTH) if i % 3}


@pytest.mark.parametrize(
    "page", [b"<html><body>Please log in</body></html>", b"{}", b"", b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>']
)
def test_something_else_where_the_bucket_should_be_is_one_line(server, store, page):
    server.refusals = [(200, {}, page)]
    with pytest.raises(NetworkError, match="is not Neuronpedia's export"):
        download(store, SMALL)


def test_html_where_json_was_expected_is_one_line(server, store):
    server.refusals = [(200, {}, b"<html>log in</html>")]
    with pytest.raises(NetworkError, match="not JSON"):
        web.json_of(web.get(server.url + "/api/feature/a/b/1"), server.url)


def test_a_body_that_breaks_off_is_fetched_again(server, store):
    publish(server, 3)
    whole = server.files[f"v1/{SOURCE}/features/batch-0.jsonl.gz"]
    listing = len(server.log)
    server.on_request = lambda count: (
        server.refusals.append((200, {"Content-Length": str(len(whole))}, whole[:20])) if count == listing + 2 else None
    )
    assert download(store, SMALL, api=False).labels == 3
    assert len([line for line in server.log if "features/batch-0" in line]) == 2


# The API


def test_a_source_that_is_not_in_the_export_is_asked_for_and_rekeyed_by_index(server, store):
    for index in range(0, WIDTH, 2):
        server.answer(index, explanations=[{"description": f"asked {index}", "explanationModelName": "m"}])
    counts = download(store, SMALL)
    assert texts(store) == {index: [f"asked {index}"] for index in range(0, WIDTH, 2)}
    assert (counts.found, counts.missing, counts.failed) == (120, 120, 0)
    asked = [line for line in server.log if line.startswith("POST")]
    assert len(asked) == 5
    download(store, SMALL)
    assert len([line for line in server.log if line.startswith("POST")]) == 5, "what it lacks is not asked for again"


def test_an_api_without_batches_is_asked_one_by_one(server, store):
    server.batches = False
    server.answer(3, explanations=[{"description": "three"}])
    tiny = Named(KEY, "r", "i", SMALL.repo, SMALL.path, 5, SOURCE)
    counts = download(store, tiny)
    assert (counts.found, counts.missing) == (1, 4)


def test_rate_limits_are_waited_out_as_long_as_they_ask(server, store, monkeypatch):
    waits = []
    monkeypatch.setattr(web, "get", lambda url, **more: web_get(url, **more, sleep=waits.append))
    publish(server, 3)
    server.refusals = [
        (429, {"Retry-After": "7"}, b""),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
        (500, {}, b""),
    ]
    assert download(store, SMALL, api=False).labels == 3
    assert waits[0] == 7.0
    assert waits[1] < 5  # a date that is over
    assert len(waits) == 3


web_get = web.get


def test_a_wait_of_hours_is_said_not_slept(server):
    server.refusals = [(429, {"Retry-After": "7200"}, b"")]
    with pytest.raises(NetworkError, match=r"asks to wait 7,200 s"):
        web.get(server.url + "/bucket/x")


def test_the_key_goes_to_the_api_only(server, store):
    publish(server, 3)
    download(store, SMALL)
    keys = {}
    for line, seen in zip(server.log, server.headers, strict=True):
        keys[line.split()[1].split("?")[0]] = {name.lower(): value for name, value in seen.items()}.get("x-api-key")
    assert keys["/api/features"] == "secret-key"
    assert {value for path, value in keys.items() if path.startswith("/bucket")} == {None}


def test_a_refused_key_is_said_without_it(server, store):
    server.refusals = [
        (200, {}, b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')
    ] * 2
    server.refusals.append((401, {}, b'{"error": "bad key"}'))
    with pytest.raises(AccessError, match="key in the environment") as error:
        download(store, SMALL)
    assert "secret-key" not in str(error.value)


def test_an_api_that_is_down_costs_nothing_that_was_found(server, store, monkeypatch):
    publish(server, 3)
    real = web.post_json
    monkeypatch.setattr(
        web,
        "post_json",
        lambda *a, **k: real(server.url.replace("http://127.0.0.1", "http://127.0.0.1") + "/api/gone", {}, tries=1),
    )
    monkeypatch.setenv("GEMLENS_NEURONPEDIA_API", "http://127.0.0.1:9/api")
    server.batches = False
    monkeypatch.setattr(web, "get", lambda url, **more: web_get(url, **more | {"tries": 1}))
    counts = download(store, SMALL)
    assert (counts.found, counts.failed) == (2, WIDTH - 3)
    assert any("cannot be reached" in reason for reason in counts.reasons)


def test_a_source_that_nobody_has_is_not_asked_for_thousands_of_times(server, store):
    with pytest.raises(NotFoundError, match="nothing under"):
        download(store, SMALL)
    assert len(server.log) == 3


def test_labels_of_another_dictionary_are_refused(server, store):
    with pytest.raises(InputError, match="labels of one dictionary mean nothing in another"):
        download(store, SMALL, neuronpedia="gemma-2-2b/19-gemmascope-res-16k")
    plain = named("google/gemma-scope-2-270m-it", "resid_post_all/layer_12_width_16k_l0_small")
    with pytest.raises(NotFoundError, match="no page of Neuronpedia for exactly"):
        download(store, plain)
    assert server.log == []


# A server that stalls or lies


def test_a_server_that_hangs_or_drips_is_given_up(server):
    ready = threading.Event()
    server.on_request = lambda _count: ready.wait(5)
    start = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached, or broke off"):
        web.get(server.url + "/bucket/x", timeout=0.2, tries=2)
    ready.set()
    assert time.monotonic() - start < 4


def test_more_than_was_asked_for_is_refused(server):
    server.files["v1/large"] = b"x" * 3_000_000
    with pytest.raises(NetworkError, match="more than 1 MB"):
        web.get(server.url + "/bucket/v1/large", largest=1_000_000)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "localhost:8000", "http://", "http://a b/", ""])
def test_only_http_is_ever_asked(url):
    with pytest.raises(InputError, match="is no address"):
        web.get(url)


# The command


def test_the_command_counts_and_writes_the_seeds_files(server, capsys, tmp_path):
    publish(server)
    ran = run(capsys, "labels", "download", *ASKED, "--no-api", "--out-dir", tmp_path / "sae")
    assert (ran.code, ran.out) == (0, "")
    assert "160 features with a label, 16,224 without, 0 failed; 240 labels in all" in ran.err
    folder = tmp_path / "sae/gemma-scope-2b-pt-res-canonical/layer_20_width_16k_canonical"
    said = json.loads((folder / "feature_labels.json").read_text("utf-8"))
    assert list(said) == ["sae_info", "features", "stats"]
    assert said["sae_info"] | {"downloaded_at": 0} == {
        "release": "gemma-scope-2b-pt-res-canonical",
        "sae_id": "layer_20/width_16k/canonical",
        "neuronpedia_id": SOURCE,
        "num_features": 16384,
        "downloaded_at": 0,
    }
    assert said["features"]["1"] == {
        "description": "label 1 of 0",
        "top_positive_tokens": [" May", " June"],
        "top_negative_tokens": ["x"],
        "max_activation": 10.5,
        "has_explanations": True,
    }
    assert said["features"]["0"]["has_explanations"] is False
    assert len(said["features"]) == 16384
    assert said["stats"] == {"total_features": 16384, "with_descriptions": 160, "successful": 16384, "failed": 0}
    assert json.loads((folder / "metadata.json").read_text("utf-8")) == said["sae_info"] | said["stats"]


def test_what_failed_ends_in_code_2_after_all_the_rest_is_stored(server, capsys, monkeypatch):
    publish(server, 3)
    monkeypatch.setenv("GEMLENS_NEURONPEDIA_API", "http://127.0.0.1:9/api")
    ran = run(capsys, "labels", "download", *ASKED)
    assert ran.code == 2
    assert "2 features with a label" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: 16,381 features could not be asked for")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--sae-release is missing"),
        (["--sae-release", "gemma-scope-2b-pt-res-canonical", "--sae-id", "layer_99/width_16k/canonical"], "layer_"),
        ([*ASKED, "--neuronpedia-id", "nonsense"], "write MODEL/SOURCE"),
        ([*ASKED, "--neuronpedia-id", "gemma-2-2b/../secret"], "write MODEL/SOURCE"),
    ],
)
def test_bad_names_are_one_line(server, capsys, arguments, said):
    assert_refused(run(capsys, "labels", "download", *arguments), said)
    assert server.log == []


def test_an_address_that_is_none_is_one_line(server, capsys, monkeypatch):
    monkeypatch.setenv("GEMLENS_NEURONPEDIA_BULK", "neuronpedia")
    assert_refused(run(capsys, "labels", "download", *ASKED), "GEMLENS_NEURONPEDIA_BULK", "is no address")


# Kills


def test_killed_twenty_times_it_ends_with_every_label_once(server, tmp_path):
    """kill -9 at random moments of a download; then once to the end. What there is, is what one go gives."""
    publish(server, WIDTH, size=4)
    for index in range(WIDTH, WIDTH + 400):
        server.answer(index, explanations=[{"description": f"asked {index}"}])
    draw = random.Random(5)
    arguments = ["labels", "download", *ASKED]
    kills = 0
    while kills < 20:
        reached, wanted = threading.Event(), len(server.log) + draw.randint(3, 9)
        server.on_request = lambda count, wanted=wanted, reached=reached: (
            count >= wanted and (reached.set(), time.sleep(0.003))
        )
        process = spawned(arguments)
        assert reached.wait(60)
        time.sleep(draw.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    server.on_request = lambda _count: None
    # The API has no more than these; the other 15,744 features of the real width would only be asked for in vain.
    done = spawned([*arguments, "--no-api"])
    assert done.wait(100) == 0
    with LabelStore() as store:
        found = texts(store)
        store.sql.execute("INSERT INTO labels_text (labels_text, rank) VALUES ('integrity-check', 1)")
        (check,) = store.sql.execute("PRAGMA integrity_check").fetchone()
        assert check == "ok"
    whole = {i: [f"label {i} of {n}" for n in range(i % 3)] for i in range(WIDTH) if i % 3}
    assert {index: sorted(every) for index, every in found.items() if index < WIDTH} == whole
    fetched = [line for line in server.log if ".jsonl.gz" in line]
    assert len(fetched) < 20 * 15 + 120, "each go goes on where the last one stopped"


def spawned(arguments):
    code = "from gemlens.app.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=os.environ, stderr=subprocess.DEVNULL)


def test_the_sample_is_of_one_source():
    assert f"{MODEL}/{LAYER}" == SOURCE


def test_the_script_writes_what_the_seed_says(server, tmp_path):
    script = Path(__file__).parents[1] / "examples" / "download_feature_labels.py"
    server.publish("explanations", [explanation(4, "months", layer="16-gemmascope-res-16k")], source=SIXTEEN)
    server.publish("features", [feature(n, layer="16-gemmascope-res-16k") for n in range(16384)], source=SIXTEEN)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sae/gemma-scope-2b-pt-res-canonical/layer_16_width_16k_canonical"
    said = json.loads((folder / "feature_labels.json").read_text("utf-8"))
    assert said["sae_info"]["neuronpedia_id"] == SIXTEEN
    assert said["features"]["4"]["description"] == "months"
    assert said["stats"] == {"total_features": 16384, "with_descriptions": 1, "successful": 16384, "failed": 0}
