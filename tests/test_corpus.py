"""Text files to documents to rows."""

import json

import pytest

from gemlens.data.corpus import documents, pack, read_documents, shuffled
from gemlens.errors import InputError, NotFoundError


def encode(texts):
    return [[ord(character) for character in text] for text in texts]


def test_rows_join_documents_and_begin_with_bos():
    rows = [row.tolist() for row in pack(["abc", "defg", "hij"], encode, bos=2, length=4)]
    assert rows == [[2, *map(ord, part)] for part in ("abc", "def", "ghi")]  # j fills no row


def test_rows_do_not_depend_on_how_documents_are_grouped():
    texts = ["x" * n for n in range(200)]
    whole = [row.tolist() for row in pack(["".join(texts)], encode, bos=0, length=16)]
    assert [row.tolist() for row in pack(texts, encode, bos=0, length=16)] == whole


def test_documents_come_from_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("beta", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n', encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\0")
    files = documents([tmp_path])
    assert [file.name for file in files] == ["a.jsonl", "b.txt"]
    assert [text for file in files for text in read_documents(file)] == ["one", "two", "beta"]


def test_shuffled_keeps_every_character(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(97 + n % 26) for n in range(10_000)), encoding="utf-8")
    parts = shuffled([file], seed=0, chunk=1000)
    assert sorted("".join(parts)) == sorted(file.read_text("utf-8"))
    assert parts == shuffled([file], seed=0, chunk=1000) != shuffled([file], seed=1, chunk=1000)


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "line 2: not JSON"), ("[]", "line 2: no text under 'text'"), ('{"text": 3}', "line 2: no text"),
     ('{"content": "x"}', "line 2: no text under 'text'")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, says):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=says):
        list(read_documents(file))


def test_what_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_documents(tmp_path / "a.txt"))
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"not a \.txt or \.jsonl"):
        documents([tmp_path / "a.pdf"])
    with pytest.raises(NotFoundError, match="does not exist"):
        documents([tmp_path / "none.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no"):
        documents([tmp_path / "empty"])
