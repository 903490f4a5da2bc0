"""``gemlens analyze`` as a user meets it: what is promised, and slips in the options told in one line."""

import importlib
import inspect
import json
import pkgutil
import typing
from pathlib import Path

import pytest
import torch
import typer

from cli_helpers import ID, REPORT, add_dictionary, assert_refused, everything_in, make_world, report, run, spawn
from gemlens import app
from gemlens.app import cli

PROMISED = {
    "--prompt": "Explain what a sparse autoencoder is in plain language.",
    "--prompts": None,
    "--system": None,
    "--model-id": "google/gemma-3-270m-it",
    "--sae-release": None,
    "--sae-category": "resid_post",
    "--sae-id": None,
    "--layer": None,
    "--top-k": 5,
    "--max-new-tokens": 64,
    "--temperature": 0.7,
    "--top-p": 0.95,
    "--greedy": False,
    "--chat": None,
    "--device": "auto",
    "--dtype": "auto",
    "--export": None,
    "--out-dir": Path("outputs"),
    "--seed": 0,
    "--exclude-features": None,
    "--splice": False,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, no_token):
    """An empty working folder, so that litter shows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# What is promised


def test_options_and_defaults_are_the_promised_ones():
    command = typer.main.get_command(cli.app).commands["analyze"]
    found = {parameter.opts[0]: parameter.default for parameter in command.params if parameter.name != "help"}
    assert list(found.items()) == list(PROMISED.items())


def test_no_option_is_called_in_capitals():
    """Typer 0.27 takes a metavar that is an option's own name for the option, unless that is spelled out."""
    checked = 0
    for module in pkgutil.iter_modules(app.__path__, "gemlens.app."):
        for _, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            if "typer.Option" not in inspect.getsource(function):
                continue
            for name, kind in typing.get_type_hints(function, include_extras=True).items():
                for option in getattr(kind, "__metadata__", ()):
                    if not isinstance(option, typer.models.OptionInfo):
                        continue
                    checked += 1
                    if option.metavar == name.upper():
                        assert f"--{name}" in (option.default, *(option.param_decls or ())), (function, name)
    assert checked > 50


def test_what_options_stand_for_when_left_out():
    from gemlens.app.options import default_dictionary
    from gemlens.scope.starter import STARTER_DICTIONARY, STARTER_RELEASE

    scope = ("google/gemma-scope-2-270m-it", ["layer_12_width_16k_l0_small"])
    assert default_dictionary("google/gemma-3-270m-it", None, None) == scope
    assert default_dictionary("starter", None, None) == (STARTER_RELEASE, [STARTER_DICTIONARY])
    assert default_dictionary("some/model", "starter", None) == (STARTER_RELEASE, [STARTER_DICTIONARY])
    assert default_dictionary("starter", "my/scope", ["a", "b", "a"]) == ("my/scope", ["a", "b"])


def test_help_lists_every_option_once_in_order_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    ran = run(capsys, "analyze", "--help")
    listed = [line.split()[0] for line in ran.out.splitlines() if line.startswith("  --")]
    assert (ran.code, ran.err) == (0, "")
    assert listed == list(PROMISED)
    said = " ".join(ran.out.split())
    for default in ("google/gemma-3-270m-it", "layer_12_width_16k_l0_small", "table only", "0.95", "outputs"):
        assert f"[default: {default}" in said


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_help_fits_the_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERMINAL_WIDTH", width)
    for command in ([], ["analyze"], ["fidelity"]):
        lines = run(capsys, *command, "--help").out.splitlines()
        assert max(map(len, lines)) <= int(width)


def test_no_arguments_print_the_help(capsys):
    ran = run(capsys)
    assert (ran.code, ran.err) == (0, "")
    assert "analyze" in ran.out
    assert "fidelity" in ran.out


def test_the_table_alone_writes_no_file(world, capsys, elsewhere):
    ran = run(capsys, *world.arguments("--prompt", "the cat"))
    assert ran.code == 0, ran.err
    assert "resid_post.2" in ran.out
    assert "Strongest features" in ran.out
    assert everything_in(elsewhere) == []


def test_exports_are_written_where_they_were_asked_for(world, capsys, elsewhere):
    out = "a/b [/red]"  # not markup
    kinds = ["--export", "html", "--export", "json", "--export", "jsonl", "--export", "json"]
    ran = run(capsys, *world.arguments("--prompt", "the cat", *kinds, "--out-dir", out))
    assert ran.code == 0, ran.err
    names = [f"{REPORT}.{kind}" for kind in ("html", "json", "jsonl")]
    assert everything_in(elsewhere / out) == names
    assert ran.err.splitlines() == [f"wrote {out}/{name}" for name in names]
    record = report(Path(out))
    rows = [json.loads(line) for line in Path(out, names[2]).read_text("utf-8").splitlines()]
    assert record["prompt"] == "the cat"
    assert record["layer"] == 2
    assert [row["token"] for row in rows] == [token["token"] for token in record["tokens"]]
    assert record["tokens"][0]["l0"] is None
    assert "the cat" in Path(out, names[0]).read_text("utf-8")


def test_a_second_run_replaces_the_report(world, capsys, elsewhere):
    for prompt in ("the cat", "the dog"):
        assert run(capsys, *world.arguments("--prompt", prompt, "--export", "json")).code == 0
    assert report()["prompt"] == "the dog"
    assert everything_in(elsewhere / "outputs") == [f"{REPORT}.json"]


def test_underscores_work_wherever_hyphens_do_but_not_in_values(world, capsys):
    arguments = ["--model_id", world.model, "--sae_release", world.release, f"--sae_id={ID}", "--top_k=3"]
    more = ["--max_new_tokens", "0", "--no_chat", "--out_dir", "my_out", "--export", "json", "--prompt", "--a_b_c"]
    ran = run(capsys, "analyze", *arguments, *more)
    assert ran.code == 0, ran.err
    record = report(Path("my_out"))
    assert record["prompt"] == "--a_b_c"
    assert max(len(token["features"]) for token in record["tokens"]) == 3


def test_an_id_without_a_slash_takes_the_category(world, capsys):
    add_dictionary(world.release, "other_kind/layer_3_mine", layer=3)
    for arguments in (["--sae-category", "other_kind/"], []):
        sae_id = "layer_3_mine" if arguments else "other_kind/layer_3_mine"
        assert run(capsys, *world.arguments(*arguments, "--export", "json", sae_id=sae_id)).code == 0
        assert [report()[key] for key in ("sae_category", "sae_id", "layer")] == ["other_kind", "layer_3_mine", 3]


def test_several_dictionaries_are_read_at_once_and_named_in_order(world, capsys):
    second = "layer_5_width_40_l0_small"
    ran = run(capsys, *world.arguments("--sae-id", second, "--sae-id", second, "--export", "json"))
    assert ran.code == 0, ran.err
    assert [d["site"] for d in report()["dictionaries"]] == ["resid_post.2", "resid_post.5"]
    assert "resid_post.5" in ran.out


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ([], "<bos><start_of_turn>user\nBe kind\n\nthe cat"),
        (["--chat"], "<bos><start_of_turn>user\nBe kind\n\nthe cat"),
        (["--no-chat"], "<bos>Be kind\n\nthe cat"),
    ],
)
def test_chat_is_automatic_and_can_be_switched_off(world, capsys, options, start):
    prompt = ["--prompt", "the cat", "--system", "Be kind"]
    assert run(capsys, *world.arguments(*prompt, *options, "--export", "json")).code == 0
    assert report()["prompt_text"].startswith(start)


def test_the_seed_decides_what_is_sampled(world, capsys):
    def generated(*options):
        assert run(capsys, *world.arguments("--max-new-tokens", 12, "--export", "json", *options)).code == 0
        return [token["token_id"] for token in report()["tokens"] if token["is_generated"]]

    hot = ["--temperature", "5"]
    assert generated(*hot, "--seed", 1) == generated(*hot, "--seed", 1) != generated(*hot, "--seed", 2)
    assert generated("--greedy", "--seed", 1) == generated("--temperature", "0", "--seed", 2)


def test_an_accelerator_that_is_not_there_is_replaced_by_the_cpu(world, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = run(capsys, *world.arguments("--device", "cuda", "--export", "json"))
    assert ran.code == 0
    assert ran.err.splitlines()[0] == "warning: no cuda device here; using the CPU"
    assert ran.err.count("warning") == 1
    assert report()["provenance"]["device"] == "cpu"


def test_a_huge_top_k_lists_what_fires(world, capsys):
    ran = run(capsys, *world.arguments("--top-k", 10**30, "--export", "json"))
    assert ran.code == 0, ran.err
    assert all(len(token["features"]) == (token["l0"] or 0) for token in report()["tokens"])


def test_markup_and_unicode_in_a_prompt_are_printed_as_they_are(world, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    ran = run(capsys, *world.arguments("--no-chat", "--prompt", "[red]é[/nonsense] 🌊"))
    assert ran.code == 0, ran.err
    assert "🌊" in ran.out
    assert "\x1b" not in ran.out
    shown = [line.split()[1] for line in ran.out.splitlines() if line[:2].strip().isdigit()]
    assert shown[1:7] == list("[red]é")


# Slips in the options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top-k", "0"], ["--top-k 0", "at least 1"]),
        (["--top-k", "five"], ["--top-k", "'five'", "integer"]),
        (["--max-new-tokens", "-1"], ["--max-new-tokens -1"]),
        (["--temperature", "-0.1"], ["--temperature -0.1", "greedy"]),
        (["--temperature", "nan"], ["--temperature nan"]),
        (["--temperature", "1e-300"], ["--temperature 1e-300", "greedy"]),
        (["--top-p", "0"], ["--top-p 0.0"]),
        (["--top-p", "1.5"], ["--top-p 1.5"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--seed", str(2**64)], ["--seed"]),
        (["--export", "pdf"], ["'pdf'", "html", "jsonl"]),
        (["--device", "gpu"], ["--device", "'gpu'", "cuda"]),
        (["--dtype", "int8"], ["--dtype", "'int8'", "bfloat16"]),
        (["--topk", "3"], ["--topk", "--top-k", "gemlens analyze --help"]),
        (["--prompt"], ["--prompt", "requires an argument", "gemlens analyze --help"]),
        (["hello"], ["hello", "--prompt"]),
        (["--prompt", ""], ["prompt is empty"]),
        (["--prompt", " \n"], ["prompt is empty"]),
        (["--prompt", "a", "--prompts", "b.txt"], ["--prompt and --prompts", "one of them"]),
        (["--model-id", ""], ["--model-id is empty", "starter"]),
        (["--model-id", "startr"], ["--model-id 'startr'", "did you mean starter"]),
        (["--model-id", "gemma-3-270m-it"], ["owner/name", "google/gemma-3-270m-it"]),
        (["--sae-release", ""], ["--sae-release is empty"]),
        (["--sae-release", "no/such/folder"], ["--sae-release 'no/such/folder'", "neither a folder"]),
        (["--sae-id", ""], ["--sae-id is empty", "layer_12_width_16k_l0_small"]),
        (["--sae-id", "../../etc/passwd"], ["'../../etc/passwd'", "leads out"]),
        (["--sae-id", "/etc/passwd"], ["'/etc/passwd'", "leads out"]),
        (["--sae-category", "../x"], ["--sae-category '../x'", "leads out"]),
        (["--layer", "13"], ["--layer 13", "layer_12_width_16k_l0_small", "layer 12"]),
        (["--layer", "-1"], ["--layer -1"]),
    ],
)
def test_a_slip_in_the_options_is_told_in_one_line(capsys, elsewhere, arguments, words):
    assert_refused(run(capsys, "analyze", "--export=html", *arguments), *words)
    assert everything_in(elsewhere) == []


def test_slips_in_the_command_are_told_with_the_near_one(capsys):
    assert_refused(run(capsys, "analyz"), "analyz", "analyze")
    assert_refused(run(capsys, "--prompt", "hi"), "gemlens analyze --prompt")
    assert_refused(run(capsys, "--nonsense"), "--nonsense", "gemlens --help")


def test_wrong_options_are_refused_before_torch_is_imported(elsewhere):
    """One process for many, each of which would raise if it got as far as importing torch."""
    Path("bad.jsonl").write_text("{}\n")
    lines = [
        *(["analyze", *words] for words in (["--help"], ["--top-k", "0"], ["--export", "pdf"], ["--sae-id", ""])),
        *(["analyze", *words] for words in (["--layer", "3"], ["--model-id", "x"], ["--prompts", "bad.jsonl"])),
        *(["fidelity", *words] for words in ([], ["--texts", "none.txt"], ["--texts", "bad.jsonl", "--export", "x"])),
        ["analyze", "--export", "json", "--out-dir", "bad.jsonl"],
        ["--help"],
        ["--version"],
    ]
    code = (
        "import sys, json\nfrom gemlens.app.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try: main(line)\n"
        "    except SystemExit as left: codes = globals().setdefault('codes', []); codes.append(left.code)\n"
        "    assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules), line\n"
        "print(codes, file=sys.stderr)"
    )
    ran = spawn(json.dumps(lines), code=code)
    assert ran.code == 0, ran.err
    expected = [0 if line[-1] in ("--help", "--version") else 2 for line in lines]
    assert ran.err.splitlines()[-1] == str(expected)
    assert len(ran.err.splitlines()) == expected.count(2) + 1
