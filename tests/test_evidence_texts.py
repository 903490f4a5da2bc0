"""The texts of the starter's evidence, from packages made up here."""

import zipfile
import zlib

import evidence_texts
from evidence_texts import manual, novels, wikipedia


def r_lines(lines, *, version):
    """A vector of strings as R serialises it, big-endian."""

    def number(value):
        return value.to_bytes(4, "big", signed=True)

    head = b"X\n" + number(version) + number(0x040000) + number(0x020300)
    head += number(5) + b"UTF-8" if version == 3 else b""
    body = b"".join(number(0x40009) + number(len(line.encode())) + line.encode() for line in lines)
    return head + number(16) + number(len(lines)) + body


def test_novels_are_read_from_rs_own_database(tmp_path):
    found = []
    for version in (2, 3):
        raw = r_lines(["EMMA", "", "She was", "the youngest.", "", "", "Élan."], version=version)
        found.append(len(raw).to_bytes(4, "big") + zlib.compress(raw))
    (tmp_path / "Rdata.rdb").write_bytes(b"".join(found))
    assert novels(tmp_path / "Rdata.rdb") == ["EMMA\n\nShe was the youngest.\n\nÉlan."] * 2


def test_articles_keep_their_title_and_number_and_end_with_the_size(tmp_path):
    stub, long = "short", "A long article. " * 60
    whole = "".join(
        f'<doc id="{number}" url="x?curid={number}" title="T{number}">\n{text}\n\n</doc>\n'
        for number, text in enumerate([long, stub, long, long])
    )
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(evidence_texts.WIKI, whole)
    found = list(wikipedia(tmp_path / "x.whl", 2000))
    assert [(number, title) for number, title, _ in found] == [("0", "T0"), ("2", "T2")]
    assert found[0][2] == long.strip()


def test_pages_lose_their_marks(tmp_path):
    for part in evidence_texts.MANUAL:
        (tmp_path / part).mkdir()
    page = ".. _tut-x:\n\nUse :func:`~os.walk` or :ref:`this page <tut-y>`, see `here <https://x.org>`_: ``ls``.\n" * 50
    (tmp_path / "tutorial/a.rst.txt").write_text(page)
    (tmp_path / "faq/b.rst.txt").write_text("short")
    (text,) = manual(tmp_path)
    assert text.splitlines()[0] == "Use os.walk or this page, see here: `ls`."
    assert "tut-" not in text
