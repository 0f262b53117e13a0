"""The layout of the house: arrows, sizes, names, docstrings, and the tools that watch over style."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("headwater", "ingest", "indexer", "query", "embedding", "vectors", "backends", "contracts")
SOURCES = (*PACKAGES, "deploy", "bench", "docs", "tests")
MODULES = sorted(path for name in SOURCES for path in (ROOT / name).rglob("*.py") if "run" not in path.relative_to(ROOT).parts[:-1])
MAX_MODULE_LINES = 400
MAX_TEST_LINES = 500  # one test body that several implementations share stays one file
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_arrows_only_point_down_and_every_engine_has_one_home() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_contracts_import_no_engine() -> None:
    engines = {"kafka", "minio", "sqlite3", "faiss", "torch", "PIL", "fastapi", "requests", "socket", "subprocess"}
    for path in (ROOT / "contracts").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & engines, name_of(path)


def test_no_module_has_400_lines_and_no_test_module_500() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    limits = {path: MAX_TEST_LINES if path.relative_to(ROOT).parts[0] == "tests" else MAX_MODULE_LINES for path in MODULES}
    assert not [(name_of(path), lines) for path, lines in lengths.items() if lines >= limits[path]]


def test_no_function_has_60_lines() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} {lines}"
        for path in MODULES
        for node in definitions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_module_is_named_after_nothing() -> None:
    empty_words = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base", "lib", "manager"}
    assert not [name_of(path) for path in MODULES if set(path.stem.split("_")) & empty_words]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_takes_gives_owns_and_never_does(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    assert not [word for word in ("Takes:", "Gives:", "Owns:", "Never:") if word not in docstring], docstring


def test_every_module_says_what_it_takes_gives_owns_and_never_does() -> None:
    silent = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES or path.name == "__init__.py":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        silent += [f"{name_of(path)}: {word}" for word in ("Takes:", "Gives:", "Owns:", "Never:") if word not in docstring]
    assert not silent


def arrays_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    annotations = [argument.annotation for argument in [*node.args.args, *node.args.kwonlyargs]] + [node.returns]
    return any("NDArray" in ast.unparse(annotation) for annotation in annotations if annotation is not None)


def test_a_public_function_with_arrays_says_their_shape() -> None:
    silent = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES:
            continue
        tree = ast.parse(path.read_text())
        tops: list[tuple[ast.AST, str]] = [(tree, "")] + [
            (node, ast.get_docstring(node) or "") for node in tree.body if isinstance(node, ast.ClassDef)
        ]
        for holder, around in tops:
            for node in holder.body:  # type: ignore[attr-defined]
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and arrays_of(node):
                    text = (ast.get_docstring(node) or "") + around
                    if "shape" not in text and not any("override" in ast.unparse(decorator) for decorator in node.decorator_list):
                        silent.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not silent


def test_no_pickle_and_no_eval() -> None:
    words = re.compile(r"^\s*(import|from) (pickle|dill|cloudpickle|shelve|marshal)\b|(?<![\w.])(eval|exec)\(", re.MULTILINE)
    assert not [name_of(path) for path in MODULES if path.relative_to(ROOT).parts[0] in PACKAGES and words.search(path.read_text())]


def test_a_number_of_examples_is_one_of_which_the_fast_run_draws_a_share() -> None:
    assert not [name_of(path) for path in MODULES if re.search(r"max_examples=\d", path.read_text())], "write max_examples=examples(...)"


def test_ruff_finds_nothing() -> None:
    done = run("ruff", "check", "--no-cache", "--output-format", "concise", ".")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_ruff_would_format_nothing() -> None:
    done = run("ruff", "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
def test_mypy_strict_finds_nothing() -> None:
    done = run("mypy")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def files_in_git() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


def test_no_file_names_a_registry_or_a_folder_of_somebodys_machine() -> None:
    home = "/(?:root|work|home/[a-z]+|Users/[A-Za-z]+)/"
    registries = r"(?:files\.pythonhosted|pypi\.python)\.org|https?://pypi\.org|registry\.npmjs|repo1?\.maven|proxy\.golang|--(?:extra-)?index-url \S"
    forbidden = re.compile(rf"(?:^|[\s\"'`=(:]){home}|{registries}", re.MULTILINE)
    found = []
    for path in files_in_git():
        if path == Path(__file__).resolve() or path.suffix in (".jpg", ".png"):
            continue
        text = path.read_bytes().decode("utf-8", "ignore")
        found += [f"{name_of(path)}: {match[0].strip()}" for match in forbidden.finditer(text)]
    assert not found


def test_no_secret_of_the_local_stack_is_in_the_repository() -> None:
    stack = ROOT / "deploy" / "local" / "stack.env"
    secrets = [line.partition("=")[2].strip() for line in stack.read_text().splitlines() if "KEY" in line] if stack.exists() else []
    names = {name_of(path) for path in files_in_git()}
    assert "deploy/local/stack.env" not in names and not {name for name in names if name.endswith((".pem", ".key", "credentials.json"))}
    for path in files_in_git():
        data = path.read_bytes()
        assert not [secret for secret in secrets if len(secret) >= 16 and secret.encode() in data], name_of(path)
