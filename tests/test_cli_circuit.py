"""``gemlens circuit`` from the command line: what it prints and writes, and what it says to wrong options and files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli_helpers import assert_refused, run, spawn
from gemlens.errors import InputError, NotFoundError
from gemlens.files import write
from gemlens.report.graph_file import circuit_to_json, read_circuit
from gemlens.report.graph_store import read_graph
from gemlens.scope.sets import find_set, load_set, sets_in
from gemlens.study.circuit.prune import prune
from graph_sample import big_circuit, random_graph, twelve
from tiny import LAYERS, published_config, random_tensors, tiny_model_folder, write_dictionary

SET = "transcoder_all/layer_*_width_40_l0_small_affine"
PROMPT = "the cat sat"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    """A model and transcoders for all its MLPs; a second, wider set misses the last layer."""
    root = tmp_path_factory.mktemp("world")
    model = tiny_model_folder(root / "gemma-3-270m-it", max_position_embeddings=256)
    for width, layers in ((40, LAYERS), (48, LAYERS - 1)):
        for layer in range(layers):
            name = SET.replace("*", str(layer)).replace("40", str(width))
            config = published_config(layer, width, type="transcoder", affine_connection=True) | {
                "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
                "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
            }
            write_dictionary(root / "scope" / name, random_tensors(16, width, skip=True, seed=layer), config)
    return model, root / "scope"


def arguments(world, *more):
    model, release = world
    return ["circuit", "--model-id", model, "--transcoders", release, "--prompt", PROMPT, *more]


def test_tracing_prints_and_writes(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = [word for kind in ("json", "html", "safetensors") for word in ("--export", kind)]
    ran = run(capsys, *arguments(world, *kinds, "--paths", 3, "--node-threshold", 0.9))
    assert ran.code == 0, ran.err
    circuit = read_circuit(Path("outputs/circuit.json"))
    kinds = [node.kind for node in circuit.nodes]
    assert f"{kinds.count('feature')} features of" in ran.out
    said = circuit.metadata["gemlens"]
    assert f"Replacement score {said['replacement_score']:.3f}" in ran.out
    assert ran.out.count(" → ") + ran.out.count(" > ") >= 3
    assert circuit.metadata["pruning_settings"] == {"node_threshold": 0.9, "edge_threshold": 0.98}
    graph = read_graph(Path("outputs/circuit.safetensors"))
    assert circuit_to_json(prune(graph, node_threshold=0.9)) == Path("outputs/circuit.json").read_text("utf-8")
    page = Path("outputs/circuit.html").read_text("utf-8")
    assert "<title>" in page
    assert "default-src &#39;none&#39;" in page
    evidence = json.loads(page.split('id="data">')[1].split("</script>")[0])["evidence"]
    features = [node for node in circuit.nodes if node.kind == "feature"]
    assert set(evidence) == {f"{node.layer}_{node.feature}" for node in features}
    assert all(len(each["top"]) == 10 for each in evidence.values())


def test_targets_are_named(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["id:20", "id:20||id:21", "feature:3.7"]
    words = [word for each in given for word in ("--targets", each)]
    ran = run(capsys, *arguments(world, *words, "--export", "json", "--max-features", "25"))
    assert ran.code == 0, ran.err
    targets = [node for node in read_circuit(Path("outputs/circuit.json")).nodes if node.kind == "target"]
    assert [node.probability is None for node in targets] == [False, True, True]
    assert (targets[0].feature, targets[0].id.split("_")[1]) == (20, "20")
    assert targets[2].label.startswith("feature 7 of layer 3")
    assert "25 feature" not in ran.out
    assert read_circuit(Path("outputs/circuit.json")).metadata["gemlens"]["feature_nodes"] == 25


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--node-threshold", "1.5"], ["--node-threshold 1.5", "from 0 to 1"]),
        (["--edge-threshold", "-1"], ["--edge-threshold -1"]),
        (["--mass", "0"], ["--mass 0"]),
        (["--mass", "0.5", "--targets", "a"], ["--mass and --targets exclude"]),
        (["--targets", "feature:x"], ["--targets feature:x", "feature:LAYER.NUMBER"]),
        (["--targets", "a||b||c"], ["--targets 'a||b||c'"]),
        (["--targets", ""], ["--targets ''"]),
        (["--max-features", "0"], ["--max-features 0"]),
        (["--memory", "0"], ["--memory 0"]),
        (["--paths", "-1"], ["--paths -1"]),
        (["--transcoder-set", "width_9k"], ["no set of transcoders called 'width_9k'"]),
        (["--transcoder-set", "width_4"], ["part of the names of 2 sets"]),
        (["--transcoder-set", "width_48"], ["layer"]),
        (["--targets", "the cat"], ["'the cat'", "tokens"]),
        (["--targets", "id:999999"], ["999999"]),
        (["--targets", "feature:3.40"], ["feature 40 of layer 3"]),
        (["--prompt", ""], ["prompt"]),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(world, capsys, tmp_path, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(capsys, *arguments(world, *more, "--export", "json")), *words)
    assert list(tmp_path.iterdir()) == []


def test_the_strongest_features_are_ablated_on_request(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(capsys, *arguments(world, "--verify", 3, "--paths", 0, "--targets", "id:20||id:21"))
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("Ablated one at a time"))
    assert "activation" in lines[head + 1]
    assert all("/" in line and "#" in line for line in lines[head + 2 : head + 5])
    assert "Correlation with the predicted changes" in lines[head + 5]


def test_a_layer_may_be_missing_on_request_only(world, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(capsys, *arguments(world, "--transcoder-set", "width_48", "--allow-missing"))
    assert ran.code == 0, ran.err
    assert_refused(run(capsys, "circuit"), "no prompt", "gemlens circuit open FILE")
    assert_refused(run(capsys, "circuit", "--mass", 0.5, "open", "x"), "--mass goes with tracing")


def test_sets_are_found_by_name(world):
    _, release = world
    names = [each.name for each in sets_in(str(release))]
    assert names == [SET, SET.replace("40", "48")]
    assert [each.layer for each in find_set(str(release)).members] == list(range(LAYERS))
    assert find_set(str(release), "width_48").name == names[1]
    assert len(load_set(find_set(str(release)))) == LAYERS
    with pytest.raises(NotFoundError, match="did you mean"):
        find_set(str(release), "transcoder_all/layer_*_width_4k_l0_small_affine")
    with pytest.raises(InputError, match="part of the names of 2 sets"):
        find_set(str(release), "affine")
    assert find_set("starter").name == "transcoder_all/layer_*_width_2k_l0_small_affine"
    assert len(find_set("starter").members) == 18


def test_gemma_scope_1_transcoders_are_one_set_though_each_names_its_own_l0():
    """Their ids: ``layer_3/width_16k/average_l0_54``, another L0 at each layer."""
    from gemlens.scope.listing import listing

    try:
        found = listing("gemma-scope-2b-pt-transcoders")
    except NotFoundError:
        pytest.skip("the catalogue does not list Gemma Scope 1's transcoders")
    sets = sets_in("gemma-scope-2b-pt-transcoders", found=found)
    assert [each.name for each in sets] == ["layer_*/width_16k"]
    assert [each.layer for each in sets[0].members] == list(range(26))


def test_open_makes_a_page_of_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(circuit_to_json(prune(random_graph(), node_threshold=1)), "graph.json")
    ran = run(capsys, "circuit", "open", "graph.json")
    assert ran.code == 0, ran.err
    assert "Strongest paths" in ran.out
    assert [path.name for path in Path("outputs").iterdir()] == ["the-capital-of.html"]
    ran = run(capsys, "circuit", "open", "graph.json", "--node-threshold", 0.5, "--out", "small.json", "--paths", 0)
    assert ran.code == 0, ran.err
    small, whole = read_circuit(Path("small.json")), read_circuit(Path("graph.json"))
    assert 7 < len(small.nodes) < len(whole.nodes)
    assert {node.id for node in small.nodes} < {node.id for node in whole.nodes}


def test_open_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"metadata": {}, "nodes": [], "links": []}')
    Path("empty.json").write_text("")
    Path("other.json").write_text('{"layers": 3}')
    write(circuit_to_json(prune(twelve())), "good.json")
    assert_refused(run(capsys, "circuit", "open", "broken.json"), "broken.json", "'prompt_tokens'")
    assert_refused(run(capsys, "circuit", "open", "empty.json"), "empty.json", "not a graph file")
    assert_refused(run(capsys, "circuit", "open", "other.json"), "no 'metadata'", "layers")
    assert_refused(run(capsys, "circuit", "open", "none.json"), "no file none.json")
    assert_refused(run(capsys, "circuit", "open", "."), "is a folder")
    assert_refused(run(capsys, "circuit", "open", "good.json", "--node-threshold", 2), "--node-threshold 2")
    assert_refused(run(capsys, "circuit", "open", "good.json", "--out", "x.pdf"), "--out x.pdf")
    assert_refused(run(capsys, "circuit", "open", "good.json", "--paths", -2), "--paths -2")
    assert not Path("outputs").exists()


def test_a_file_of_a_hundred_megabytes_is_refused_with_a_way_out_that_works(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    large = Path("large.json")
    write(circuit_to_json(big_circuit(nodes=12_000, links=1_200_000)), large)
    assert large.stat().st_size > 100e6
    refused = run(capsys, "circuit", "open", large)
    assert_refused(refused, "1,200,000 links", "--node-threshold")
    enough = re.search(r"--node-threshold \(([\d.]+) is enough\)", refused.err)[1]
    ran = run(capsys, "circuit", "open", large, "--node-threshold", enough, "--out", "page.html")
    assert ran.code == 0, ran.err
    assert Path("page.html").stat().st_size < 20e6


def test_opening_a_file_needs_no_torch(tmp_path):
    write(circuit_to_json(prune(twelve())), tmp_path / "good.json")
    code = (
        "import sys\nfrom gemlens.app.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    ran = spawn("circuit", "open", "good.json", code=code, cwd=tmp_path)
    assert ran.err.splitlines()[-1] == "False", ran.err


def test_diff_prints_and_draws_what_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(circuit_to_json(prune(random_graph(), node_threshold=1)), "a.json")
    write(circuit_to_json(prune(random_graph(), node_threshold=0.6)), "b.json")
    ran = run(capsys, "circuit", "diff", "a.json", "b.json", "--top", 3)
    assert ran.code == 0, ran.err
    assert "Gained  0 nodes" in ran.out
    lost = len(read_circuit(Path("a.json")).nodes) - len(read_circuit(Path("b.json")).nodes)
    assert f"Lost  {lost} nodes" in ran.out
    assert len(list(Path("outputs").glob("*-vs-*.html"))) == 1
    ran = run(capsys, "circuit", "diff", "a.json", "b.json", "--out", "both.json")
    assert ran.code == 0, ran.err
    assert "difference" in read_circuit(Path("both.json")).metadata
    assert_refused(run(capsys, "circuit", "diff", "a.json", "c.json"), "no file c.json")
    assert_refused(run(capsys, "circuit", "diff", "a.json", "b.json", "--top", -1), "--top -1")
