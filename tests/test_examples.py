"""The scripts in ``examples/`` run, and show what they say they show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, starter):
    """A script as a module, on the model that the tests share."""
    import gemlens

    monkeypatch.setattr(gemlens, "load_model", lambda *_args, **_options: starter)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_script_is_listed_and_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    tested = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert {name for name in scripts if f"({name}.py)" not in listed} == set()
    assert {name for name in scripts if f'"{name}"' not in tested and f"{name}.py" not in tested} == set()


def test_extraction(example, capsys):
    analysis = example("extraction").main("The capital of France is")
    assert len(analysis.tokens) == 6
    assert capsys.readouterr().out.count("\n") == 6


def test_ablation(example, capsys):
    before, after = example("ablation").main("The capital of France is")
    assert (before - after).abs().max() > 1e-3
    assert "taken out at every token but BOS" in capsys.readouterr().out


def test_steering(example, capsys):
    texts = example("steering").main(new=6)
    assert sorted(texts) == [-1, 0, 0.5, 1, 2]
    assert len(set(texts.values())) > 1
    assert "perplexity" in capsys.readouterr().out


def test_trace_circuit(example, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["trace_circuit.py", "--top", "3"])
    example("trace_circuit").main()
    first, *features = capsys.readouterr().out.splitlines()
    assert "mlp_in.12 -> mlp_out.12" in first
    assert len(features) == 3


def test_build_attribution_graph(example, capsys, monkeypatch, tmp_path):
    page = tmp_path / "graph.html"
    monkeypatch.setattr("sys.argv", ["build_attribution_graph.py", "Paris is in", "--out", str(page)])
    example("build_attribution_graph").main()
    assert "default-src" in page.read_text("utf-8")
    assert "matter" in capsys.readouterr().out
