"""Writes the pages, and the marked parts of pages, that are made from the code: settings, metrics, commands, errors, format examples.

    .venv/bin/python -m docs.generate      (make docs)

Takes: the code, `docs/errors/codes.yaml`, `tests/docs/format_examples.py`. Gives: Markdown; `tests/house/test_docs.py` compares it with the files.
Owns: docs/settings.md, docs/metrics.md, docs/cli.md, docs/errors/*.md, and what stands between ``generated`` marks in docs/formats.
Never: writes a sentence of its own about what something means: sentences live beside the code, or in codes.yaml.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from contracts import errors
from contracts.metrics import Metrics
from contracts.settings import Settings

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGES = ("headwater", "ingest", "indexer", "query", "embedding", "vectors", "backends", "contracts")
NOTE = "<!-- Made by `python -m docs.generate`; change the code, not this page. -->\n"
_BLOCK = re.compile(r"(<!-- generated: ([a-z_.]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    return f"`{shown}`" if str(shown) else "empty"


def settings_page() -> str:
    """docs/settings.md: every setting in the order of the class."""
    rows = [
        (f"`{name}`", f"`HEADWATER_{name.upper()}`", _default(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return (
        f"{NOTE}# Settings\n\nEach setting has a name for `headwater.yaml` (in the folder where the process starts) and one for the\n"
        "environment, which wins. A name that is none of these is refused. The unit stands in the name or the description.\n\n"
        + table(("setting", "environment", "default", "meaning"), rows)
    )


def metrics_page() -> str:
    """docs/metrics.md: every metric of `contracts.metrics`."""
    made = Metrics()
    labels = {getattr(metric, "_name", ""): getattr(metric, "_labelnames", ()) for metric in vars(made).values()}
    rows = [
        (
            f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`",
            metric.type,
            ", ".join(f"`{label}`" for label in labels[metric.name]),
            metric.documentation,
        )
        for metric in sorted(made.registry.collect(), key=lambda metric: metric.name)
    ]
    return (
        f"{NOTE}# Metrics\n\nThe query service serves them at `/metrics`; a worker does so where `metrics_port` is set.\n"
        "Units are seconds, bytes, rows, records.\n\n" + table(("metric", "type", "labels", "meaning"), rows)
    )


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in children:
        yield from _commands(children[name], f"{path} {name}")


def _parameter(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
        return f"`{name}`" if parameter.required else f"`[{name}]`", "", parameter.help or ""
    names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len, reverse=True))
    default = parameter.default
    is_shown = default is not None and default is not False and not callable(default) and str(default)
    return names, f"`{default}`" if is_shown else "", parameter.help or ""


def cli_page() -> str:
    """docs/cli.md: every command of the typer app with its arguments and options."""
    import typer

    from headwater.cli import app

    root = typer.main.get_command(app)
    exits = "Exit codes: 0 done; 1 a check failed, or some input was rejected; 2 wrong request; 4 something is not there now; 5 fenced; 6 corrupt."
    parts = [f"{NOTE}# Command line\n\n{root.help}\n\n{exits}\n"]
    for path, command in _commands(root, "headwater"):
        rows = [_parameter(p) for p in command.params if p.name != "help"]
        parts.append(f"\n## {path}\n\n{command.help or ''}\n" + ("\n" + table(("argument or option", "default", "meaning"), rows) if rows else ""))
    return "".join(parts)


def error_classes(root: type[errors.HeadwaterError] = errors.HeadwaterError) -> Iterator[type[errors.HeadwaterError]]:
    """Every class of the tree in `contracts.errors`."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_classes(child)


@cache
def _codes_of(source: str) -> tuple[tuple[str, str], ...]:
    """Codes of a module with the name of what carries them: ``code="..."`` in a call, ``code = "..."`` in a class."""
    codes: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)) if "code" in source else ():
        if isinstance(node, ast.Call):
            found = [(keyword.value, ast.unparse(node.func)) for keyword in node.keywords if keyword.arg == "code"]
        elif isinstance(node, ast.ClassDef) and node.bases:
            assigned = [line.value for line in node.body if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code"]
            found = [(value, ast.unparse(node.bases[0])) for value in assigned]
        else:
            continue
        codes += [(value.value, kind) for value, kind in found if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return tuple(codes)


def codes_in_code() -> dict[str, str]:
    """Code -> name of its class in `contracts.errors`; a described code that is written otherwise counts while its word is in the code."""
    found = {kind.code: kind.__name__ for kind in error_classes()}
    sources = [path.read_text() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    for source in sources:
        for code, kind in _codes_of(source):
            found.setdefault(code, kind if hasattr(errors, kind) else "HeadwaterError")
    for code in _written():
        if code not in errors.REJECT_REASONS and any(f'"{code}"' in source for source in sources):
            found.setdefault(code, "SettingsError")
    return found


def _written() -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = yaml.safe_load((DOCS / "errors" / "codes.yaml").read_text())
    return words


def error_pages() -> dict[Path, str]:
    """docs/errors: an index and a short page per code; the sentences live in codes.yaml and REJECT_REASONS."""
    written, known = _written(), codes_in_code()
    pages: dict[Path, str] = {}
    rows = []
    for code, kind in sorted(known.items()):
        words = written.get(code, {"what": "(not described)", "do": "(not described)"})
        exit_code = getattr(errors, kind).exit_code
        pages[DOCS / "errors" / f"{code}.md"] = (
            f"{NOTE}# {code}\n\n`{kind}`, exit code {exit_code}\n\n**What it means.** {words['what']}\n\n**What to do.** {words['do']}\n"
        )
        rows.append((f"[{code}]({code}.md)", kind, str(exit_code), words["what"]))
    rejects = []
    for reason, sentence in sorted(errors.REJECT_REASONS.items()):
        words = written.get(reason, {"do": "(not described)"})
        pages[DOCS / "errors" / f"{reason}.md"] = (
            f"{NOTE}# {reason}\n\nReject reason: the record goes to the dead-letter topic and is not indexed; its neighbours are.\n\n"
            f"**What it means.** {sentence[0].upper()}{sentence[1:]}.\n\n**What to do.** {words['do']}\n"
        )
        rejects.append((f"[{reason}]({reason}.md)", sentence))
    pages[DOCS / "errors" / "README.md"] = (
        f"{NOTE}# Errors\n\nEach error has a stable code. Its class says what the caller does next.\n\n"
        + table(("code", "class", "exit code", "meaning"), rows)
        + "\n## Reject reasons\n\nWhy a record went to the dead-letter topic (header `hw_reason`, column `reason`,\n"
        "label of `headwater_dead_letters_total`).\n\n" + table(("reason", "meaning"), rejects)
    )
    return pages


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replace what stands between the marks of each named block; KeyError where a page names an unknown one."""
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]] + match[3], text)


def pages() -> dict[Path, str]:
    """Every generated page, and every format page with its generated parts renewed."""
    from tests.docs.format_examples import blocks

    made = {DOCS / "settings.md": settings_page(), DOCS / "metrics.md": metrics_page(), DOCS / "cli.md": cli_page(), **error_pages()}
    found = blocks()
    for path in sorted((DOCS / "formats").glob("*.md")):
        made[path] = fill(path.read_text(), found)
    return made


def main() -> None:
    """Write what differs; remove pages of error codes that are gone."""
    made = pages()
    for path, text in made.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in (DOCS / "errors").glob("*.md"):
        if path not in made:
            path.unlink()


if __name__ == "__main__":
    main()
