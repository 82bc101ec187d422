"""The structure of the code, measured: imports without circles, files and functions that a reader can hold in mind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx

from fusion.kernels.backend import backends
from fusion.refusal import CODES

ROOT = Path(__file__).parents[1]
FLOORS = ("patterns", "kernels", "runtime")  # folders that are packages inside `fusion`


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder in ("fusion", *FLOORS):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            package = ("fusion", *parts) if folder in FLOORS else parts
            found[".".join(package).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """The modules that one imports anywhere in its text: inside of functions and for type checkers, too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{origin}.{alias.name}"
                yield inside if inside in modules() else origin


def test_imports_have_no_circles() -> None:
    graph = networkx.DiGraph()
    for name, path in modules().items():
        graph.add_edges_from((name, other) for other in imports(name, path) if other in modules() and other != name)
    assert graph.number_of_edges() > 500, "the imports were not found: the test would show nothing"
    circles = [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles


def test_code_outside_of_a_backend_names_none() -> None:
    """Nor imports from one, but for the C compiler that the runtime's own extension needs."""
    folder = "fusion.kernels.backends."
    shared = {name: path for name, path in modules().items() if not f"{name}.".startswith(folder)}
    importing = {name for name, path in shared.items() if any(i.startswith(folder) for i in imports(name, path))}
    assert importing == {"fusion.runtime.native"}
    names = {backend.name for backend in backends()}
    assert len(names) > 1
    for path in shared.values():
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not names & texts, path


def test_every_refusal_code_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    assert [code for code in CODES if not re.search(f"[\"']{code}[\"':]", tests)] == []


OWN_FOLDERS = {"fuzz", "gpu", "replay", "support"}  # of tests: tools, what needs a device, and what tests share


def test_test_folders_mirror_source_folders() -> None:
    tests = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    mirroring = {folder for folder in tests if folder.parts and folder.parts[0] not in OWN_FOLDERS}
    assert len(mirroring) > 10, "the tests were not found: this one would show nothing"
    assert [str(folder) for folder in mirroring if not any((ROOT / folder).glob("*.py"))] == []


def test_what_tests_share_is_in_one_folder() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    assert {path.relative_to(ROOT / "tests").parts[0] for path in files} == OWN_FOLDERS - {"gpu"}


@cache
def sources() -> list[tuple[Path, str, ast.Module]]:
    """Every file that people read, with its text and syntax tree: the package, its tests, the benchmarks."""
    folders = (ROOT / folder for folder in ("fusion", *FLOORS, "tests", "bench"))
    texts = ((path, path.read_text()) for folder in folders for path in folder.rglob("*.py"))
    return [(path.relative_to(ROOT), text, ast.parse(text)) for path, text in texts]


MOST_LINES = {ast.ClassDef: 300, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
MOST_LINES_OF_A_FILE = 400


def test_files_classes_and_functions_are_short() -> None:
    files = sources()
    assert len(files) > 400, "the files were not found: the test would show nothing"
    long = []
    for path, text, tree in files:
        if text.count("\n") > MOST_LINES_OF_A_FILE:
            long.append(str(path))
        for node in ast.walk(tree):
            if isinstance(node, tuple(MOST_LINES)) and node.end_lineno - node.lineno + 1 > MOST_LINES[type(node)]:
                long.append(f"{path}: {node.name}")
    assert long == []


MOST_ATTRIBUTES = 15
RICHER = {
    "FusionConfig": "each field is a knob of its own that users set by name",
    "RegionReport": "a row of the report: its attributes are the fields of the JSON",
    "ScopeReport": "likewise",
    "RecordedGraph": "the public value of a recording, whose fields its constructor takes",
}


def attributes(kind: ast.ClassDef) -> set[str]:
    """Names of a class's fields, and of what its methods set on `self`."""
    found = {n.target.id for n in kind.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


def test_classes_have_few_attributes() -> None:
    kinds = [node for _, _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert {kind.name for kind in kinds if len(attributes(kind)) > MOST_ATTRIBUTES} == set(RICHER)
