"""The face of the package: public names, the weight of ``import gemlens``, and who may import whom."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gemlens

SOURCE = Path(gemlens.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "rich",
    "typer",
    "jinja2",
    "pydantic",
    "pyarrow",
}

LEAVES = {"batched", "errors", "files", "hub", "parts", "paths", "precision", "ranges", "records", "sites", "web"}
MAY_IMPORT = {
    "scope": LEAVES,
    "lm": LEAVES,
    "data": LEAVES,
    "study": LEAVES | {"scope", "lm", "data"},
    "train": LEAVES | {"scope", "lm", "data"},
    "report": {"errors", "files", "records", "batched"},
    "external": {"errors", "records", "scope", "sites", "web"},
    "app": LEAVES | {"scope", "lm", "data", "study", "train", "report", "external"},
    "__main__": {"app"},
}


class Import(NamedTuple):
    """One import of one module of gemlens by another, both without the leading ``gemlens.``."""

    importer: str
    imported: str
    at_once: bool
    """Runs when the importing module does, not inside a function and not for type checkers only."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gemlens."):
                    yield Import(module, alias.name.removeprefix("gemlens."), at_once)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{path} line {node.lineno}: write imports in full, they are checked by name"
            if base == "gemlens" or base.startswith("gemlens."):
                base = base.removeprefix("gemlens").removeprefix(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".removeprefix(".")
                    yield Import(module, inner if inner in known else base, at_once)
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_type_checkers(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not later)

    yield from visit(ast.parse(path.read_text("utf-8")), True)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


MODULES = modules()
IMPORTS = [each for module, path in MODULES.items() for each in imports(module, path, MODULES)]


def room(module: str) -> str:
    return module.split(".")[0]


# Names


def test_every_public_name_can_be_imported_and_is_documented():
    for name in gemlens.__all__:
        value = getattr(gemlens, name)
        if name != "__version__":
            doc = inspect.getdoc(value)
            # A dataclass without a docstring gets its signature as one.
            assert doc and not doc.startswith(f"{name}("), f"gemlens.{name} has no docstring"
            assert value.__module__.startswith("gemlens."), name


def test_the_lazy_table_what_type_checkers_see_and_all_agree():
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if _for_type_checkers(node))
    seen = {alias.name: f"{node.module}" for node in block.body for alias in node.names}
    assert seen == {name: f"gemlens.{module}" for name, module in gemlens._MODULE.items()}
    assert sorted(seen) == sorted(set(gemlens.__all__) - {"__version__"})
    assert len(gemlens.__all__) == len(set(gemlens.__all__))


def test_star_import_and_dir_give_the_public_names():
    space: dict[str, object] = {}
    exec("from gemlens import *", space)
    assert set(gemlens.__all__) <= set(space)
    assert {name for name in dir(gemlens) if not name.startswith("_")} == set(gemlens.__all__) - {"__version__"}


def test_a_name_that_is_not_there_names_the_near_one():
    with pytest.raises(AttributeError, match=r"'gemlens' has no attribute 'analyse'; did you mean analyze"):
        gemlens.analyse  # noqa: B018
    with pytest.raises(ImportError):
        exec("from gemlens import load_models", {})
    assert not hasattr(gemlens, "nothing")


def test_every_error_of_the_tree_is_public():
    from gemlens import errors

    tree = {name for name in errors.__all__ if name.endswith("Error")}
    assert tree <= set(gemlens.__all__)
    assert all(issubclass(getattr(gemlens, name), gemlens.GemlensError) for name in tree)


def test_what_a_module_exports_is_there():
    """``__all__`` of every module, without importing optional parts that may not be installed."""
    import importlib

    for module in MODULES:
        loaded = importlib.import_module(f"gemlens.{module}".rstrip("."))
        missing = [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)]
        assert missing == [], module


# Weight


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_gemlens_loads_nothing_heavy():
    loaded = loaded_after("import gemlens; dir(gemlens); gemlens.GemlensError; gemlens.parse_site('resid_post.12')")
    assert loaded & HEAVY == set()


def test_reading_a_record_loads_no_torch():
    loaded = loaded_after("import gemlens; gemlens.Analysis; gemlens.to_json; gemlens.to_html")
    assert loaded & (HEAVY - {"numpy"}) == set()


def test_the_command_line_loads_only_what_help_needs():
    # Typer brings rich or pydantic, by its version.
    assert loaded_after("import gemlens.app.cli") & (HEAVY - {"typer", "pydantic", "rich"}) == set()


# Direction


def test_every_import_goes_in_an_allowed_direction():
    assert {room(module) for module in MODULES} - {""} == LEAVES | set(MAY_IMPORT)
    wrong = [
        f"{each.importer} imports {each.imported}"
        for each in IMPORTS
        if room(each.importer) in MAY_IMPORT
        and each.imported  # gemlens itself: the version
        and room(each.imported) not in MAY_IMPORT[room(each.importer)] | {room(each.importer)}
    ]
    assert wrong == []


def test_the_leaves_import_no_room():
    wrong = [
        each
        for each in IMPORTS
        if room(each.importer) in LEAVES and each.imported and room(each.imported) not in LEAVES
    ]
    # What a notebook calls on a record to draw it: the one view that a record knows of, when it is asked for.
    drawing = {each for each in wrong if room(each.importer) == "records" and room(each.imported) == "report"}
    assert [each for each in wrong if each not in drawing or each.at_once] == []


def test_nobody_imports_the_face_but_for_the_version():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "gemlens" and room(module):
                names = {alias.name for alias in node.names}
                assert names <= {"__version__"} | set(MODULES), f"{module} imports {names} from gemlens"


def test_no_module_needs_itself_to_be_imported():
    needs: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in IMPORTS:
        if each.at_once and each.imported:
            needs[each.importer].add(each.imported)
    while done := {module for module, needed in needs.items() if not needed}:
        needs = {module: needed - done for module, needed in needs.items() if module not in done}
    assert needs == {}, "these import each other in a ring"


def test_the_checks_above_see_imports_at_all():
    found = {(each.importer, each.imported, each.at_once) for each in IMPORTS}
    assert ("study.analyze", "scope.sae", True) in found
    assert ("app.analyze", "study.analyze", False) in found
    assert ("app.analyze", "records", False) in found
    assert ("records.analysis", "report.notebook", False) in found
    assert ("study.analysis", "", True) in found
