"""Where prompts come from: the command line, standard input, a file of many."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from cli_helpers import ID, REPORT, assert_refused, everything_in, make_world, report, run
from gemlens.app.prompts import Prompt, read_prompts
from gemlens.errors import InputError, NotFoundError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def from_file(content, name="prompts.txt", system=None):
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(prompt.text, prompt.system) for prompt in read_prompts("", path, system)]


def piped(monkeypatch, content, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(content), encoding=encoding, errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stream)


# One


def test_the_prompt_itself_is_taken_as_it_is():
    assert read_prompts(" two  spaces\n", None, "be kind") == [Prompt(" two  spaces\n", "be kind")]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_standard_input_is_utf8_whatever_the_locale(monkeypatch, encoding):
    piped(monkeypatch, "日本\nthe sea\n".encode(), encoding)
    assert read_prompts("-", None, None)[0].text == "日本\nthe sea"


@pytest.mark.parametrize(
    ("raw", "text"), [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a", "a"), (b"\xef\xbb\xbfa", "a")]
)
def test_the_line_end_that_echo_adds_is_no_part_of_the_prompt(monkeypatch, raw, text):
    piped(monkeypatch, raw)
    assert read_prompts("-", None, None)[0].text == text


@pytest.mark.parametrize(("raw", "word"), [(b"", "empty"), (b"\n", "empty"), (b"caf\xe9", "UTF-8 text .*byte 3")])
def test_standard_input_without_text_is_refused(monkeypatch, raw, word):
    piped(monkeypatch, raw)
    with pytest.raises(InputError, match=word):
        read_prompts("-", None, None)


def test_closed_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="closed"):
        read_prompts("-", None, None)


def test_an_argument_that_the_locale_hid_is_read_as_utf8(monkeypatch):
    """Under ``LC_ALL=C`` Python keeps bytes above 127 as surrogates."""
    hidden = "é 日本".encode().decode("ascii", "surrogateescape")
    assert read_prompts(hidden, None, hidden) == [Prompt("é 日本", "é 日本")]


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_an_argument_that_is_not_text_is_refused(option):
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(InputError, match=f"{option} is not UTF-8"):
        read_prompts(broken if option == "--prompt" else "a", None, broken if option == "--system" else None)


# Many


def test_a_text_file_holds_one_prompt_a_line():
    assert from_file("first \n\n  \r\nsecond\r\nthird") == [("first ", None), ("second", None), ("third", None)]
    assert from_file("only", "PROMPTS.TXT", "be kind") == [("only", "be kind")]


def test_a_byte_order_mark_is_no_part_of_the_first_prompt():
    assert from_file(b"\xef\xbb\xbffirst\nsecond") == [("first", None), ("second", None)]
    assert from_file(b'\xef\xbb\xbf{"prompt": "a"}\n', "p.jsonl") == [("a", None)]


@pytest.mark.parametrize("char", ["\u2028", "\u0085", "\x0c", "\x1c"])
def test_only_line_ends_end_a_line(char):
    assert from_file(f"a{char}b\nc") == [(f"a{char}b", None), ("c", None)]


def test_json_may_hold_a_line_separator_as_it_is():
    assert from_file('{"prompt": "a\u2028b"}\n', "p.jsonl") == [("a\u2028b", None)]


def test_a_json_line_may_bring_its_own_system_prompt():
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "system": "mine"},
        {"prompt": "c", "system": None},
        {"prompt": "d", "system": ""},
    ]
    content = "\n".join(map(json.dumps, rows))
    found = [("a", "default"), ("b", "mine"), ("c", "default"), ("d", None)]
    assert from_file(content, "p.jsonl", "default") == found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["line 2", "not JSON"]),
        ("[" * 100_000, ["line 2", "not JSON"]),
        ('{"prompt": NaN}', ["line 2", "'prompt' is empty or not text"]),
        ("[1]", ["line 2", "no 'prompt'", "no object"]),
        ('"text"', ["line 2", "no object"]),
        ('{"text": "a", "id": 3}', ["line 2", "no 'prompt'", "'text', 'id'"]),
        ("{}", ["line 2", "nothing"]),
        ('{"prompt": ""}', ["line 2", "'prompt' is empty"]),
        ('{"prompt": 3}', ["line 2", "not text"]),
        ('{"prompt": "a", "system": 0}', ["line 2", "'system' is not text"]),
        ('{"prompt": "a", "system": []}', ["line 2", "'system' is not text"]),
        ('{"prompt": "\\ud800"}', ["line 2", "surrogate"]),
        ('{"prompt": "a", "system": "\\udfff"}', ["line 2", "surrogate"]),
    ],
)
def test_a_bad_line_is_named(capsys, line, words):
    Path("p.jsonl").write_text(f'{{"prompt": "good"}}\n{line}\n')
    assert_refused(run(capsys, "analyze", "--prompts", "p.jsonl", "--export", "jsonl"), "p.jsonl", *words)
    assert everything_in(Path()) == ["p.jsonl"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.txt", ["none.txt does not exist", ".jsonl"]),
        ("empty.txt", ["empty.txt holds no prompt"]),
        ("empty.jsonl", ["empty.jsonl holds no prompt"]),
        ("folder", ["folder is a folder"]),
        ("folder.txt", ["folder.txt is a folder"]),
        ("table.csv", ["table.csv", ".txt"]),
        ("latin.txt", ["latin.txt is not UTF-8 text", "byte 3"]),
        ("wide.txt", ["wide.txt is not UTF-8 text"]),
        ("n" * 300 + ".txt", ["File name too long"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(capsys, elsewhere, name, words):
    for file in ("empty.txt", "empty.jsonl"):
        Path(file).write_text("\n  \n")
    for folder in ("folder", "folder.txt"):
        Path(folder).mkdir()
    Path("table.csv").write_text("prompt\n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("wide.txt").write_text("prompt", encoding="utf-16")
    before = everything_in(elsewhere)
    assert_refused(run(capsys, "analyze", "--prompts", name, "--export", "html"), *words)
    assert everything_in(elsewhere) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions bind no administrator")
def test_a_file_that_may_not_be_read_is_named(capsys):
    Path("closed.txt").write_text("a")
    Path("closed.txt").chmod(0)
    assert_refused(run(capsys, "analyze", "--prompts", "closed.txt"), "closed.txt cannot be read (Permission denied)")


def test_a_missing_file_is_a_not_found_error():
    with pytest.raises(NotFoundError):
        read_prompts("", Path("none.txt"), None)


# The whole command


def many(world, *more):
    kept = [argument for argument in world.arguments(*more) if argument != "--prompt"]
    return [*kept, "--prompts", "p.jsonl"]


@pytest.fixture
def three():
    rows = [{"prompt": "the cat"}, {"prompt": "the [/red] dog", "system": "be kind"}, {"prompt": "the sun"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [row["prompt"] for row in rows]


def test_many_prompts_make_one_jsonl_and_a_report_each(world, capsys, three):
    ran = run(capsys, *many(world, "--export", "jsonl", "--export", "html", "--export", "json"))
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert ran.err.splitlines() == [f"wrote outputs/{REPORT}.jsonl", "wrote 6 reports to outputs/reports"]
    names = [f"{index}.{kind}" for index in (1, 2, 3) for kind in ("html", "json")]
    assert everything_in(Path("outputs")) == [f"{REPORT}.jsonl", "reports", *(f"reports/{name}" for name in names)]
    rows = [json.loads(line) for line in Path("outputs", f"{REPORT}.jsonl").read_text("utf-8").splitlines()]
    for index, prompt in enumerate(three):
        record = json.loads(Path("outputs", "reports", f"{index + 1}.json").read_text("utf-8"))
        mine = [row["token"] for row in rows if row["prompt_index"] == index]
        assert record["prompt"] == prompt
        assert mine == [token["token"] for token in record["tokens"]]
    assert {row["prompt_index"] for row in rows} == {0, 1, 2}


@pytest.mark.parametrize("new", [0, 5])
def test_a_prompt_read_among_others_reads_as_alone(world, capsys, three, new):
    assert run(capsys, *many(world, "--max-new-tokens", new, "--export", "json")).code == 0
    among = json.loads(Path("outputs", "reports", "3.json").read_text("utf-8"))
    assert run(capsys, *world.arguments("--max-new-tokens", new, "--prompt", three[2], "--export", "json")).code == 0
    alone = report()
    if not new:  # read in a batch, in which sums round otherwise
        for record in (among, alone):
            for feature in (feature for token in record["tokens"] for feature in token["features"]):
                feature["activation"] = pytest.approx(feature["activation"], rel=1e-4)
    assert among["tokens"] == alone["tokens"]


@pytest.mark.parametrize(("new", "passes"), [(0, 1), (1, 3)])
def test_prompts_are_read_together_but_answered_one_at_a_time(world, capsys, three, monkeypatch, new, passes):
    import gemlens.study.analyze as study

    seen = []
    for name in ("ragged_activations", "generate"):
        real = getattr(study, name)

        def counted(*arguments, real=real, **settings):
            seen.append(1)
            return real(*arguments, **settings)

        monkeypatch.setattr(study, name, counted)
    ran = run(capsys, *many(world, "--max-new-tokens", new, "--export", "jsonl"))
    assert (ran.code, len(seen)) == (0, passes)


def test_without_exports_each_prompt_has_its_title_and_table(world, capsys, three):
    ran = run(capsys, *many(world))
    assert ran.code == 0, ran.err
    titles = [line for line in ran.out.splitlines() if line.startswith("Prompt ")]
    assert titles == [f"Prompt {index} of 3: {prompt}" for index, prompt in enumerate(three, 1)]
    assert ran.out.count("Strongest features") == 3
    assert everything_in(Path()) == ["p.jsonl"]


def test_reports_are_numbered_so_that_they_sort(world, capsys):
    Path("p.jsonl").write_text("\n".join(f'{{"prompt": "{word}"}}' for word in "abcdefghij"))
    assert run(capsys, *many(world, "--export", "json")).code == 0
    assert everything_in(Path("outputs", "reports")) == [f"{index:02}.json" for index in range(1, 11)]


def test_one_prompt_that_is_too_long_is_named_before_the_first_is_read(world, capsys, three):
    with Path("p.jsonl").open("a") as file:
        file.write('\n\n{"prompt": "' + "x" * 300 + '"}\n')
    ran = run(capsys, *many(world, "--export", "html", "--export", "jsonl"))
    assert_refused(ran, "p.jsonl, line 5", "256", "shorten")
    assert everything_in(Path()) == ["p.jsonl"]


def test_an_interrupt_between_prompts_leaves_whole_reports_only(world, capsys, three, monkeypatch):
    import gemlens.study.analyze as study

    real, calls = study.ragged_activations, []

    def third_time_interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(study, "_BATCH", 1)
    monkeypatch.setattr(study, "ragged_activations", third_time_interrupted)
    ran = run(capsys, *many(world, "--export", "json", "--export", "jsonl"))
    assert ran.code == 130
    assert everything_in(Path("outputs")) == ["reports", "reports/1.json", "reports/2.json"]
    for name in ("1", "2"):
        json.loads(Path("outputs", "reports", f"{name}.json").read_text("utf-8"))


def test_the_warning_about_the_pair_is_told_once_where_no_table_tells_it(world, capsys, three, tmp_path):
    (tmp_path / "poet").symlink_to(world.model)
    ran = run(capsys, *many(world, "--model-id", tmp_path / "poet", "--export", "jsonl"))
    assert ran.code == 0
    lines = ran.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"warning: {ID} was trained on google/gemma-3-270m-it")
