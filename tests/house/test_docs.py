"""Docs match code: what is generated is up to date, and every name that a user can meet has its place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from contracts import archive_tar, attributes, deletes, ledger, object_keys
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveEpochs, ArchiveManifest, PendingPurge, TarEntry
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord, NameRecord, StoredModel
from contracts.errors import REJECT_REASONS
from contracts.manifest import Checkpoint, Epochs, LedgerEntry, Manifest, ObjectEntry, Previous, SegmentEntry
from contracts.metrics import Metrics
from contracts.settings import Settings
from docs import generate

DOCS = Path(generate.__file__).resolve().parent
ROOT = DOCS.parent
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
REMEDY = "run `python -m docs.generate` (make docs) and read what changed"


def quoted(page: str) -> set[str]:
    """Words between backticks of a page."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return generate.pages()


def test_generated_pages_are_what_the_code_makes_today(made: dict[Path, str]) -> None:
    old = [path.relative_to(ROOT).as_posix() for path, text in made.items() if not path.exists() or path.read_text() != text]
    assert len(made) > 20 and not old, f"out of date: {REMEDY}"


def test_making_the_pages_twice_makes_the_same_pages(made: dict[Path, str]) -> None:
    assert generate.pages() == made


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    text = (DOCS / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"| `{name}` | `HEADWATER_{name.upper()}` |" in text and field.description and field.description in text, name


def test_every_metric_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    for metric in Metrics().registry.collect():
        assert f"`{metric.name}" in text and metric.documentation in text, metric.name


def test_every_error_code_has_a_page_with_sentences() -> None:
    written = yaml.safe_load((DOCS / "errors" / "codes.yaml").read_text())
    codes = set(generate.codes_in_code())
    undescribed = {code for code in codes if not {"what", "do"} <= set(written.get(code, {}))} | {
        r for r in REJECT_REASONS if "do" not in written.get(r, {})
    }
    assert not undescribed, "describe them in docs/errors/codes.yaml"
    assert set(written) == codes | set(REJECT_REASONS), "codes.yaml describes codes that are gone"
    for code in written:
        assert (DOCS / "errors" / f"{code}.md").exists(), REMEDY


def test_every_command_is_documented() -> None:
    import typer

    from headwater.cli import app

    text = (DOCS / "cli.md").read_text()
    commands = list(generate._commands(typer.main.get_command(app), "headwater"))
    assert len(commands) >= 8
    for path, command in commands:
        assert f"## {path}\n" in text and command.help and command.help in text, path
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.name == "help" or max(parameter.opts, key=len) in text, (
                f"{path} {parameter.name}"
            )


def test_every_command_that_hints_and_pages_name_exists() -> None:
    import typer

    from headwater.cli import app

    commands = {path.removeprefix("headwater ") for path, _ in generate._commands(typer.main.get_command(app), "headwater")}
    groups = {command.split()[0] for command in commands if " " in command}
    named = re.compile(r"(?:`|\brun |\bthen |bin/|^    )headwater ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", re.MULTILINE)
    strange = set()
    for path in [*PAGES, DOCS / "errors" / "codes.yaml", *(file for package in generate.PACKAGES for file in (ROOT / package).rglob("*.py"))]:
        for first, second in named.findall(path.read_text()):
            command = f"{first} {second}" if first in groups and second else first
            if command not in commands | groups:
                strange.add(f"{path.relative_to(ROOT)}: headwater {command}")
    assert not strange


@pytest.mark.parametrize("kind", object_keys.PATTERNS)
def test_every_kind_of_object_key_is_documented(kind: str) -> None:
    text = (DOCS / "formats" / "object_keys.md").read_text()
    assert f"| `{kind}` |" in text and object_keys.PATTERNS[kind] in text


@pytest.mark.parametrize(("page", "models"), [
    ("formats/manifest.md", (Manifest, SegmentEntry, ObjectEntry, LedgerEntry, Previous, Checkpoint, Epochs)),
    ("formats/archive.md", (ArchiveManifest, ArchiveCheckpoint, ArchiveEpochs, TarEntry, PendingPurge)),
    ("formats/collection.md", (CollectionRecord, IndexRecord, FieldRecord, NameRecord)),
])  # fmt: skip
def test_every_stored_field_is_on_its_page(page: str, models: Iterable[type[StoredModel]]) -> None:
    words = {word for quote in quoted(page) for word in re.findall(r"\w+", quote)}
    assert not {name for model in models for name in model.model_fields} - words


@pytest.mark.parametrize(
    ("page", "schema"),
    [
        ("formats/ledger.md", ledger._SCHEMA),
        ("formats/deletes.md", deletes._SCHEMA),
        ("formats/archive.md", archive_tar._SCHEMA),
    ],
)
def test_every_stored_column_is_on_its_page(page: str, schema: pa.Schema) -> None:
    assert not set(schema.names) - quoted(page)


def test_every_attribute_type_and_verdict_is_on_its_page() -> None:
    assert not set(attributes.ARROW_TYPES) - quoted("formats/attributes.md")
    assert not set(ledger.VERDICTS) - quoted("formats/ledger.md")


def test_every_format_page_is_in_the_index_and_says_who_writes_reads_and_how_it_evolves() -> None:
    index = (DOCS / "formats" / "README.md").read_text()
    for path in (DOCS / "formats").glob("*.md"):
        if path.name != "README.md":
            text = path.read_text()
            assert f"]({path.name})" in index, path.name
            assert (
                "**Evolution.**" in text
                and ("**Limits.**" in text or "## Limits" in text)
                and "**Writers" in text
                and "**Readers" in text.replace("**Writers and readers", "**Writers** **Readers")
            ), path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_inside_the_docs_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"|srcset=\"([^\"]+)\"", path.read_text()):
        link = next(part for part in target if part)
        assert link.startswith(("http://", "https://", "mailto:")) or (path.parent / link).exists(), f"{path.name} -> {link}"


def test_every_page_that_the_code_names_exists() -> None:
    missing = set()
    for package in generate.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            missing |= {f"{path.name} -> {page}" for page in re.findall(r"docs/[A-Za-z0-9_/-]+\.md", text) if not (ROOT / page).exists()}
            missing |= {
                f"{path.name} -> ADR {number}" for number in re.findall(r"\bADR (\d{4})\b", text) if not list((DOCS / "adr").glob(f"{number}-*.md"))
            }
    assert not missing


@pytest.mark.parametrize("path", sorted((DOCS / "adr").glob("[0-9]*.md")), ids=lambda path: path.stem)
def test_a_decision_has_all_its_parts_and_names_tests_that_exist(path: Path) -> None:
    text = path.read_text()
    for part in ("Status:", "Date:", "## Context", "## Decision", "## Rejected", "## Consequences", "## Tests that hold it"):
        assert part in text, part
    for name in re.findall(r"`(tests/[A-Za-z0-9_/.]+)`", text.split("## Tests that hold it")[1]):
        assert (ROOT / name).exists(), name


def test_the_code_map_names_only_modules_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:headwater|ingest|indexer|query|embedding|vectors|backends|contracts)/[A-Za-z0-9_/]+\.py)`", text))
    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_test_that_the_security_page_names_exists() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", (DOCS / "security.md").read_text())
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing
