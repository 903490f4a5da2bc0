"""``gemlens train`` as a user meets it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file

import gemlens
from cli_helpers import assert_refused, everything_in, make_world, run
from gemlens.app import train_progress
from gemlens.errors import MissingPackageError
from gemlens.external.tensorboard import scalars
from gemlens.scope.load import load_clt, load_sae

SAE = "resid_post/layer_3_width_32_l0_small"
FILES = [
    "README.md", "card.json", "config.json", "curves.csv", "curves.svg", "max_activation.safetensors",
    "params.safetensors", "training.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("the cat and the dog sat in the sun. " * 1000)
    Path("texts/b.txt").write_text("then the man sang, and the hat fell in the sand. " * 400)
    return folder


SMALL = {"--width": 32, "--l0": 4, "--tokens": "6k", "--batch": 64, "--row-length": 32, "--buffer": 512}


def arguments(world, kind="sae", **changes):
    """Of a run that works and is quick; None leaves an option out."""
    given = {"--model-id": world.model, "--texts": "texts", "--out": "scope", **SMALL}
    if kind == "sae":
        given["--sites"] = "resid_post.1,resid_post.3"
    given |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["train", kind, *(str(part) for pair in given.items() if pair[1] is not None for part in pair)]


def curves_of(path, out="scope"):
    return list(csv.DictReader(Path(out, path, "curves.csv").read_text().splitlines()))


def test_what_it_trains_analyze_reads(world, capsys):
    """From texts to a table of features, by the command line alone."""
    ran = run(capsys, *arguments(world, held_out="texts/b.txt"))
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert "shuffling 512 tokens at 2 sites" in ran.err
    assert "5,952 of 5,952 tokens" in ran.err
    assert "loss " in ran.err
    assert f"scope/{SAE}: variance explained" in ran.err
    assert sorted(path.name for path in Path("scope", SAE).iterdir()) == FILES
    names = ["--model-id", world.model, "--sae-release", "scope", "--sae-id", SAE]
    analyzed = run(capsys, "analyze", *names, "--prompt", "the cat sat", "--max-new-tokens", 0, "--export", "json")
    assert analyzed.code == 0, analyzed.err
    assert "warning" not in analyzed.err
    record = json.loads(Path("outputs/gemma_scope_2_report.json").read_text())
    assert record["dictionaries"][0]["width"] == 32
    assert sum(token["l0"] or 0 for token in record["tokens"]) > 0

    card = json.loads(Path("scope", SAE, "card.json").read_text())
    measured = run(capsys, "fidelity", *names, "--texts", "texts/b.txt", "--mix", "texts/a.txt", "--export", "f.json")
    assert measured.code == 0, measured.err
    figures = json.loads(Path("f.json").read_text())[0]
    for name in (
        "l0",
        "variance_explained",
        "variance_explained_pca",
        "fvu",
        "ce_recovered_mean",
        "dead_tokens",
        "dead",
    ):
        assert card[name] == pytest.approx(figures[name], rel=1e-6), name
    assert not [name for name in card if name.startswith("int8") or name == "variance_explained_linear"]
    assert [text["name"] for text in card["source"]["texts"]] == ["a.txt"]  # the other was held out
    assert card["tokens_trained"] == 5952
    each = load_file(Path("scope", SAE, card["max_activation"]))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} == {
        "max_activation": ((32,), torch.float32), "tokens_active": ((32,), torch.int64),
    }  # fmt: skip
    assert float((each["tokens_active"] == 0).float().mean()) == pytest.approx(card["dead"])
    assert torch.equal(each["max_activation"] > 0, each["tokens_active"] > 0)
    page = Path("scope", SAE, "README.md").read_text()
    assert f"# {SAE}" in page
    assert f"| by a PCA of rank {card['l0']:.0f} of the same tokens | {card['variance_explained_pca']:.3f} |" in page
    assert f"{figures['variance_explained']:.3f}" in page
    assert "gemma-3-270m-it" in page
    assert str(world.model) not in page


def test_the_picture_holds_the_curves(world, capsys):
    assert run(capsys, *arguments(world, sites="resid_post.3")).code == 0
    picture = ElementTree.parse(Path("scope", SAE, "curves.svg")).getroot()
    curves = [
        each.get("d") for each in picture.iter("{http://www.w3.org/2000/svg}path") if each.get("class") == "curve"
    ]
    rows = curves_of(SAE)
    assert len(curves) == 4
    for path, column in zip(curves, ("loss", "fvu", "l0", "dead"), strict=True):
        heights = [float(place.split()[1]) for place in path[1:].split("L")]
        values = [float(row[column]) for row in rows]
        assert len(heights) == len(values) == 93
        # Downwards on a screen is down in value.
        assert heights.index(min(heights)) == values.index(max(values)) or len(set(values)) == 1, column


@pytest.mark.parametrize(
    ("kind", "changes", "path"),
    [
        ("transcoder", {"layers": "1-2", "category": "transcoder_all"}, "transcoder_all/layer_2_width_32_l0_small"),
        ("clt", {"layers": "0,2"}, "clt/layers_0_2_width_64_l0_small"),
    ],
)
def test_transcoders_and_clts(world, capsys, kind, changes, path):
    ran = run(capsys, *arguments(world, kind, tokens="1k", save_dtype="float32", **changes), "--skip")
    assert ran.code == 0, ran.err
    path += "_affine"
    if kind == "clt":
        clt = load_clt("scope", path)
        assert [str(site) for site in clt.reads + clt.writes] == ["mlp_in.0", "mlp_in.2", "mlp_out.0", "mlp_out.2"]
    else:
        sae = load_sae("scope", path)
        assert (str(sae.reads), str(sae.writes)) == ("mlp_in.2", "mlp_out.2")
        assert sae.skip is not None
        assert everything_in(Path("scope/transcoder_all"))[0] == "layer_1_width_32_l0_small_affine"
    assert "Measured\n\nNothing was" in Path("scope", path, "README.md").read_text()


def test_the_card_says_what_int8_cost(world, capsys):
    """Against the same run stored as float32, whose numbers are the exact ones; again when the run is only finished."""
    told = {"sites": "resid_post.3", "held_out": "texts/b.txt"}
    assert run(capsys, *arguments(world, out="exact", save_dtype="float32", **told), "--no-dead").code == 0
    for _ in range(2):
        ran = run(capsys, *arguments(world, save_dtype="int8", **told), "--no-dead")
        assert ran.code == 0, ran.err
        assert "int8 keeps " in ran.err
        assert not Path("scope", SAE, "max_activation.safetensors").exists()
        card = json.loads(Path("scope", SAE, "card.json").read_text())
        Path("scope", SAE, "card.json").unlink()
    with Path("texts/b.txt").open() as text:
        cost = gemlens.quantization_cost(
            gemlens.load_model(str(world.model)), load_sae("exact", SAE), load_sae("scope", SAE), [text.read()]
        )
    assert 0.5 < cost.kept < 1, "the test would not tell"
    expected = {
        "int8_kept": cost.kept, "int8_added": cost.added, "int8_ce_change": cost.ce_change,
        "int8_variance_explained_change": cost.variance_explained_change, "l0": cost.quantized.l0,
    }  # fmt: skip
    assert {name: card[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    page = Path("scope", SAE, "README.md").read_text()
    assert f"| active features kept by int8 | {cost.kept:.2%}; {cost.added:.2%} more became active |" in page
    assert f"{cost.ce_change:+.4f} nats" in page


def test_from_a_store(world, capsys):
    stored = ["--model-id", world.model, "--texts", "texts", "--sites", "resid_post.1,resid_post.3", "--row-length", 32]
    assert run(capsys, "collect", "activations", *stored, "--tokens", "3k", "--out", "acts").code == 0
    given = arguments(world, model_id=None, texts=None, row_length=None, store="acts", sites="resid_post.3")
    ran = run(capsys, *given, "--held-out", "texts/b.txt")
    assert ran.code == 0, ran.err
    card = json.loads(Path("scope", SAE, "card.json").read_text())
    assert card["source"]["model"] == world.model.name
    assert card["source"]["stored_tokens"] == 3007
    assert card["dead_tokens"] == 3007 // 64 * 64  # each token once
    assert_refused(run(capsys, *given, "--dtype", "float32"), "--dtype goes with --texts")
    assert_refused(
        run(
            capsys, *arguments(world, model_id=None, texts=None, row_length=None, store="acts", out="b", sites="embed")
        ),
        "holds nothing of embed",
    )


SLOW = """
import sys, time, torch
torch.set_num_threads(1)
from gemlens.train.learner import Learner
step = Learner.step
Learner.step = lambda self, batch: (time.sleep(0.01), step(self, batch))[1]
from gemlens.train import run
run.SAMPLE = 256
from gemlens.app.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_stopped_goes_on(world, capsys, monkeypatch, number, code):
    monkeypatch.setattr("gemlens.train.run.SAMPLE", 256)
    assert run(capsys, *arguments(world, out="whole")).code == 0
    with Path("log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments(world)], stderr=log)
    deadline = time.monotonic() + 60
    while "loss" not in Path("log").read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(60) == code
    said = Path("log").read_text()
    assert "stopping after this step" in said
    assert "the same command goes on there" in said
    assert everything_in(Path("scope")) == ["checkpoint.safetensors"]
    refused = run(capsys, *arguments(world, l0=5))
    assert_refused(refused._replace(err=refused.err.splitlines(True)[-1]), "l0 4.0 there, 5.0 asked for")
    ran = run(capsys, *arguments(world))
    assert ran.code == 0, ran.err
    assert "going on at " in ran.err
    for name in ("params.safetensors", "config.json", "curves.csv"):
        assert Path("scope", SAE, name).read_bytes() == Path("whole", SAE, name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": None}, ["--texts", "--store"]),
        ({"store": "acts"}, ["either --texts", "--store"]),
        ({"out": None}, ["--out"]),
        ({"width": 0}, ["width 0"]),
        ({"l0": 40}, ["l0 40.0", "32"]),
        ({"sites": "resid_post.99"}, ["resid_post.99 does not exist", "0 to 6"]),
        ({"sites": "resid_pots.1"}, ["resid_pots", "did you mean resid_post"]),
        ({"sites": "resid_post.1,resid_post.1"}, ["two dictionaries would be called"]),
        ({"layers": "3"}, ["--layers is for transcoders"]),
        ({"tokens": "many"}, ["--tokens many"]),
        ({"batch": 9000}, ["at least one whole batch"]),
        ({"buffer": 8}, ["a buffer of 8"]),
        ({"row_length": 1000}, ["--row-length 1000"]),
        ({"groups": "8,4"}, ["groups [8, 4]"]),
        ({"groups": "x"}, ["--groups x"]),
        ({"activation": "relu"}, ["--activation", "relu"]),
        ({"texts": "empty.txt"}, ["the corpus is empty"]),
        ({"texts": "none.txt"}, ["none.txt does not exist"]),
        ({"texts": "texts/a.txt", "held_out": "texts/a.txt"}, ["held out"]),
        ({"tokens": "9M"}, ["the corpus gave", "9,000,000 were asked for"]),
        ({"out": "texts"}, ["texts holds other files"]),
        ({"category": "../x"}, ["--category '../x'"]),
        ({"store": "acts", "texts": None, "model_id": None, "row_length": None}, ["manifest.json"]),
        ({"save_dtype": "int4"}, ["int4"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"tensorboard": "tb"}, ["pip install tensorboard"]),
    ],
)
def test_slips_are_told_in_one_line(world, capsys, elsewhere, monkeypatch, changes, words):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Path("empty.txt").write_text("")
    before = everything_in(elsewhere)
    ran = run(capsys, *arguments(world, **changes))
    lines = ran.err.splitlines(True)
    assert_refused(ran._replace(err=lines[-1]), *words)
    assert [line for line in lines if line.startswith(("error", "Traceback"))] == lines[-1:]
    left = ["scope", "scope/checkpoint.safetensors"] if changes == {"tokens": "9M"} else []
    assert everything_in(elsewhere) == sorted(before + left)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("clt", {}, ["no layers were given", "--layers"]),
        ("transcoder", {"sites": "mlp_in.1"}, ["--sites is for SAEs"]),
        ("transcoder", {"layers": "3-1"}, ["--layers 3-1"]),
        ("clt", {"layers": "3,1"}, ["rising order"]),
        ("crosscoder", {"layers": "3"}, ["crosscoder"]),
    ],
)
def test_slips_of_layers(world, capsys, kind, changes, words):
    assert_refused(run(capsys, *arguments(world, kind, **changes)), *words)


def test_a_skip_of_an_sae_is_refused(world, capsys):
    assert_refused(run(capsys, *arguments(world), "--skip"), "skip: an SAE")


def test_tensorboard_gets_every_step(world, capsys, monkeypatch):
    written, closed = {}, []

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_scalar(self, tag, value, step):
            written[tag, step] = value

        def close(self):
            closed.append(True)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    assert run(capsys, *arguments(world, sites="resid_post.3", tensorboard="tb")).code == 0
    assert written["folder"] == "tb"
    rows = {int(row["step"]): row for row in curves_of(SAE)}
    for step in (1, 93):
        assert written[f"{SAE}/loss", step] == pytest.approx(float(rows[step]["loss"]), rel=1e-4)
    assert closed == [True]


def test_without_tensorboard_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"), scalars(tmp_path):
        pass


def test_a_terminal_shows_a_table(world, monkeypatch):
    import io

    from rich.console import Console

    from gemlens.train.learner import Step

    configs = {SAE: gemlens.FitConfig(width=32, l0=4, tokens=640, batch=64)}
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, markup=False)
    with train_progress.progress(console, configs) as report:
        report({SAE: Step(4, 0.25, 0.5, 4.2, 8)})
    shown = text.getvalue()
    for words in ("256 of 640 tokens", "left", SAE, "loss 0.2500", "L0 4.2", "FVU 0.500", "dead 25.0%"):
        assert words in shown, words


def test_dictionaries_are_dealt_out_to_processes(world, capsys, monkeypatch):
    """Those of one process, to the bit: as many tokens are shuffled. The first speaks, each measures its own."""
    monkeypatch.setattr("gemlens.app.train_source._BUFFER_BYTES", 3 * 16 * 2 * 300)
    told = {
        "sites": "resid_post.1,resid_post.2,resid_post.3",
        "tokens": "2k",
        "held_out": "texts/b.txt",
        "buffer": None,
        "dtype": "bfloat16",
    }
    assert run(capsys, *arguments(world, out="alone", **told), "--no-dead").code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        ran = run(capsys, *arguments(world, **told), "--no-dead")
        assert ran.code == 0, ran.err
        assert ran.out == ""
        assert ("shuffling 300 tokens at 2 sites" in ran.err) if rank == 0 else not ran.err
    for layer in (1, 2, 3):
        path = SAE.replace("3", str(layer), 1)
        for name in ("config.json", "curves.csv", "params.safetensors"):
            assert Path("scope", path, name).read_bytes() == Path("alone", path, name).read_bytes(), (path, name)
        cards = [json.loads(Path(out, path, "card.json").read_text()) for out in ("scope", "alone")]
        assert cards[0]["ce_spliced"] == cards[1]["ce_spliced"]
    assert sorted(path.name for path in Path("scope").iterdir()) == ["checkpoint.1of2", "checkpoint.2of2", "resid_post"]
    monkeypatch.delenv("WORLD_SIZE")
    refused = run(capsys, *arguments(world, **told))
    assert_refused(refused._replace(err=refused.err.splitlines(True)[-1]), "a run of 2 processes", "start as many")


def torchrun(*arguments):
    """Two processes, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gemlens"]
    known = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], env=known, capture_output=True, text=True, timeout=180)


def test_torchrun_shares_the_features_of_one_dictionary(world, capsys):
    """In bfloat16, with sums of halves: nearly what one process trains. Written and told of once."""
    told = {"sites": "resid_post.3", "tokens": "1280", "held_out": "texts/b.txt"}
    assert run(capsys, *arguments(world, out="alone", **told), "--no-dead").code == 0
    done = torchrun(*arguments(world, **told), "--no-dead")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1,280 of 1,280 tokens") == done.stderr.count(f"scope/{SAE}: variance explained") == 1
    found, expected = (load_file(Path(out, SAE, "params.safetensors")) for out in ("scope", "alone"))
    cosines = torch.cosine_similarity(found["w_dec"].float(), expected["w_dec"].float())
    assert cosines.median() > 0.999
    for row, other in zip(curves_of(SAE), curves_of(SAE, "alone"), strict=True):
        assert float(row["fvu"]) == pytest.approx(float(other["fvu"]), rel=0.02)
    for rank in (1, 2):
        held = load_file(f"scope/checkpoint.{rank}of2/checkpoint.safetensors")
        assert len(held[f"learner {SAE}:w_enc.0"]) == 16


def test_dictionaries_that_do_not_go_round_are_refused(world, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert_refused(run(capsys, *arguments(world)), "WORLD_SIZE is 3, and RANK is not set; start with torchrun")
    monkeypatch.setenv("RANK", "0")
    assert_refused(run(capsys, *arguments(world, split="dictionaries")), "3 processes for 2 dictionaries")
    assert not Path("scope").exists()


def test_refitted_decoders_reconstruct_better_with_the_same_features(world, capsys):
    made = {}
    for name, refit in (("plain", None), ("refit", "5k")):
        ran = run(capsys, *arguments(world, out=name, refit=refit, save_dtype="float32", sites="resid_post.3"))
        assert ran.code == 0, ran.err
        made[name] = load_sae(name, SAE)
    told = json.loads(Path("refit", SAE, "training.json").read_text())
    assert told["source"]["refit_tokens"] == 5000
    assert told["config"] == json.loads(Path("plain", SAE, "training.json").read_text())["config"]
    figures = {}
    for name in made:
        ran = run(
            capsys, "fidelity", "--model-id", world.model, "--sae-release", name, "--sae-id", SAE,
            "--texts", "texts/a.txt", "--export", f"{name}.json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        figures[name] = json.loads(Path(f"{name}.json").read_text())[0]
    assert figures["refit"]["l0"] == pytest.approx(figures["plain"]["l0"], rel=0.01)
    assert figures["refit"]["fvu"] < figures["plain"]["fvu"]


def test_a_clt_is_not_refitted(world, capsys):
    ran = run(capsys, *arguments(world, "clt", layers="1,3", refit="5k"))
    assert_refused(ran, "--refit is for SAEs and transcoders")
    assert not Path("scope").exists()
