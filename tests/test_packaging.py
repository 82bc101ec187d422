"""What a newcomer meets first: the README's names, the Makefile's targets, the package's contents."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from fusion.config import FusionConfig

ROOT = Path(__file__).resolve().parents[1]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def attributes_of_fusion(code: str) -> set[str]:
    """`fusion.NAME` wherever it is written in `code`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fusion"
    }


def test_every_name_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = PYTHON_BLOCK.findall(text)
    assert blocks
    names = set().union(*map(attributes_of_fusion, blocks))
    names |= set(re.findall(r"`(?:[^`]*\()?fusion\.([a-z_]+)\(", text))
    assert {"enable", "disable", "report"} <= names
    module = importlib.import_module("fusion")
    assert [name for name in sorted(names) if not hasattr(module, name)] == []


def test_the_readme_examples_that_download_nothing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSION_CACHE_DIR", str(tmp_path))
    blocks = [b for b in PYTHON_BLOCK.findall((ROOT / "README.md").read_text()) if "from_pretrained" not in b]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "SwiGLU" in printed and "torch.Size([5, 4096])" in printed and "Totals" in printed
    assert "'input x0'" in printed and "'0 silu'" in printed


def test_the_readme_lists_every_field_of_the_config() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*?) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    fields = [(name, repr(info.default), info.description) for name, info in FusionConfig.model_fields.items()]
    assert rows == fields


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_folders_of_the_documents_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:patterns|kernels|runtime|fusion|tests|bench|\.ci)/[\w./]*)`", text)
    assert [path for path in (*links, *paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "test-all", "replay", "lint", "bench", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    """`make -n` prints what it would run, and runs nothing."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_installs_torch_first_and_by_its_pin(target: str, tmp_path: Path) -> None:
    command = ["make", "-n", target, f"VENV={tmp_path / 'fresh'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    installs = [line for line in done.stdout.splitlines() if " -m pip install " in line]
    assert installs[0].endswith(f" -m pip install torch=={pins()['torch']}"), done.stdout + done.stderr
    assert "-c constraints.txt -e '.[hf,dev]'" in installs[1]


def test_ci_runs_lint_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in text
    assert text.splitlines()[-3:] == ["make lint", "make test", "make test-slow"]
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def requirements() -> dict[str, set[str]]:
    """Names of the packages that pyproject.toml declares: "core", and by extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {
        group: {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in lines}  # type: ignore[index]
        for group, lines in declared.items()
    }


def test_every_requirement_is_pinned() -> None:
    assert set().union(*requirements().values()) - pins().keys() == set()


def imported(tree: ast.AST) -> Iterator[str]:
    """Top packages that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def packages_imported_by(*folders: str) -> set[str]:
    """Packages of others that the folders' files import; each is named as it is installed."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert files
    own = {"fusion", "bench", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}
    found = {name for file in files for name in imported(ast.parse(file.read_text(encoding="utf-8")))}
    return found - own - sys.stdlib_module_names


def test_what_the_package_imports_is_what_it_requires() -> None:
    declared = requirements()
    assert packages_imported_by("fusion", "patterns", "kernels", "runtime") == declared["core"] | declared["hf"]


IMPORTED_BY_NO_TEST = {
    "pytest-timeout": "a plugin: the setting `timeout`",
    "pytest-xdist": "a plugin: `make test` runs on all cores",
    "expecttest": "torch.testing's operator samples import it",
    "ruff": "a tool of `make lint`",
    "mypy": "a tool of `make lint`",
    "import-linter": "a tool of `make lint`",
}


def test_what_tests_and_benchmarks_import_is_what_they_require() -> None:
    declared = requirements()
    beyond = packages_imported_by("tests", "bench") - declared["core"] - declared["hf"]
    assert beyond == declared["dev"] - IMPORTED_BY_NO_TEST.keys()
    assert IMPORTED_BY_NO_TEST.keys() <= declared["dev"]


def test_all_packages_are_listed_and_typed() -> None:
    """A folder of Python files that pyproject.toml forgets would be missing from an installation."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for top in ("fusion", "patterns", "kernels", "runtime"):
        for file in (ROOT / top).rglob("__init__.py"):
            dotted = ".".join(file.parent.relative_to(ROOT).parts)
            found.add(dotted if top == "fusion" else f"fusion.{dotted}")
    assert found == set(setup["packages"])
    assert (ROOT / "fusion" / "py.typed").exists()


def test_the_console_script_points_at_the_command() -> None:
    (script,) = (s for s in metadata.entry_points(group="console_scripts") if s.name == "fusion")
    assert callable(script.load())


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines) if version}


def environment() -> dict[str, str]:
    """This process's environment without the flags an outer make hands down."""
    return {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")}
