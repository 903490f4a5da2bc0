"""Text files to documents to rows."""

import importlib.util
import itertools
import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemlens.data.corpus import documents, pack, read_documents
from gemlens.data.hub_dataset import HubDataset
from gemlens.data.mix import mixed
from gemlens.errors import InputError, MissingPackageError, NotFoundError


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


def letters(n, seed=0):
    return "".join(random.Random(seed).choices("abcdefgh\né海", k=n))


def write_parquet(path, texts, **settings):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, **settings)
    return path


def test_every_format_gives_the_same_documents_and_rows(tmp_path):
    texts = [letters(n, n) for n in (10, 300, 1, 77, 0, 90)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    write_parquet(tmp_path / "a.parquet", texts, row_group_size=2)
    write_parquet(tmp_path / "b.parquet", pa.array(texts, pa.large_string()))
    for name in ("a.jsonl", "a.parquet", "b.parquet"):
        (source,) = documents([tmp_path / name])
        assert list(read_documents(source)) == texts
    (tmp_path / "c.txt").write_text("".join(texts), encoding="utf-8")
    rows = [
        [row.tolist() for row in pack(read_documents(tmp_path / name), encode, bos=0, length=9)]
        for name in ("a.jsonl", "a.parquet", "c.txt")
    ]
    assert rows[0] == rows[1] == rows[2]


def test_parquet_is_read_a_row_group_at_a_time(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", ["x" * 1000] * 200_000, row_group_size=1000, compression="none")
    before = pa.total_allocated_bytes()
    reader = read_documents(path)
    next(reader)
    assert pa.total_allocated_bytes() - before < 20e6
    reader.close()


@pytest.mark.parametrize(
    ("table", "says"),
    [({"body": ["x"]}, "no column 'text'; its columns are body"), ({"text": ["x", None]}, "row 2: no text"),
     ({"text": [3]}, "row 1: no text")],
)  # fmt: skip
def test_parquet_without_text_is_refused(tmp_path, table, says):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=says):
        list(read_documents(tmp_path / "a.parquet"))


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["some text"] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet"):
        list(read_documents(path))


# Data sets of the hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hf:a/b", HubDataset("a/b")), ("hf:a/b:en", HubDataset("a/b", "en")),
     ("hf:a/b:en:test", HubDataset("a/b", "en", "test")), ("hf:a/b::test", HubDataset("a/b", None, "test")),
     ("hf:a/b:en@abc", HubDataset("a/b", "en", revision="abc"))],
)  # fmt: skip
def test_data_sets_print_as_they_parse(text, expected):
    assert documents([text]) == [expected]
    assert str(expected) == text


def test_what_names_no_data_set_is_refused():
    with pytest.raises(InputError, match="hf:owner/name"):
        documents(["hf:"])


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'gemlens\[datasets\]'"):
        list(read_documents(HubDataset("a/b")))


@pytest.fixture
def offline_datasets(tmp_path, monkeypatch):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed: pip install 'gemlens[datasets]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_data_sets_are_read_through_their_package(tmp_path, offline_datasets):
    texts = [letters(50, n) for n in range(30)]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    (tmp_path / "parquet").mkdir()
    write_parquet(tmp_path / "parquet" / "a.parquet", texts, row_group_size=7)
    for kind in ("json", "parquet"):
        (source,) = documents([f"hf:{tmp_path / kind}"])
        assert list(read_documents(source)) == texts
        assert sorted(mixed([source], 0)) == sorted(texts)
    with pytest.raises(InputError, match="no column 'body'; its columns are"):
        list(read_documents(source, field="body"))


def test_a_data_set_that_does_not_exist_is_named(tmp_path, offline_datasets):
    with pytest.raises(NotFoundError, match="hf:nobody/nothing cannot be opened"):
        list(read_documents(HubDataset("nobody/nothing")))


# Shuffled


def corpus(folder, **kinds):
    for name, texts in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return documents([folder])


def test_mixed_gives_every_character_once_and_the_seed_decides_the_order(tmp_path):
    files = corpus(tmp_path, a=[letters(n, n) for n in range(500)], b=[letters(9000)], c=["x"] * 40)
    (tmp_path / "d.txt").write_text(letters(5003), encoding="utf-8")
    files = documents([tmp_path])
    parts = list(mixed(files, 0, piece=1000, buffer=64))
    whole = "".join(text for file in files for text in read_documents(file))
    assert sorted("".join(parts)) == sorted(whole)
    assert max(map(len, parts)) == 1000
    assert parts == list(mixed(files, 0, piece=1000, buffer=64))
    assert parts != list(mixed(files, 1, piece=1000, buffer=64))


def test_mixed_reads_all_files_at_the_same_pace(tmp_path):
    """Whatever the lengths of their documents, each tenth of the stream has about a tenth of each file.

    But for the last: sizes are in bytes, of which some are JSON.
    """
    files = corpus(tmp_path, a=["a" * 100] * 3000, b=["b" * 1000] * 100, c=["c" * 10_000] * 20)
    stream = "".join(mixed(files, 0, piece=500, buffer=100))
    tenth = len(stream) // 10
    for start in range(0, 8 * tenth, tenth):
        part = stream[start : start + tenth]
        for letter in "abc":
            assert part.count(letter) == pytest.approx(stream.count(letter) / 10, rel=0.35)


def test_mixed_separates_neighbours(tmp_path):
    files = corpus(tmp_path, a=[f"{n:05}" for n in range(5000)])
    order = [int(text) for text in mixed(files, 0, buffer=500)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 50


def test_mixed_holds_no_more_than_its_buffer(tmp_path, monkeypatch):
    seen = 0

    def endless(source, piece):
        nonlocal seen
        while True:
            seen += 1
            yield "text"

    monkeypatch.setattr("gemlens.data.mix.read_pieces", endless)
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    stream = mixed([tmp_path / "a.txt"], 0, buffer=50)
    for _ in range(10):
        next(stream)
    assert seen == 60


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "line 2: not JSON"), ("[]", "line 2: no text under 'text'"), ('{"text": 3}', "line 2: no text"),
     ('{"content": "x"}', "line 2: no text under 'text'"), (r'{"text": "a\ud800"}', "line 2: half of a surrogate")],
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
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8"):
        list(mixed([tmp_path / "a.txt"], 0))
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"not a \.txt, \.jsonl or \.parquet"):
        documents([tmp_path / "a.pdf"])
    with pytest.raises(NotFoundError, match="does not exist"):
        documents([tmp_path / "none.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no"):
        documents([tmp_path / "empty"])
