"""Promises of the command line: help everywhere, one line per error, exit codes, and collections from creation to deletion."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.console import Console

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.attributes import ARROW_TYPES
from contracts.settings import load_settings
from headwater import __version__
from headwater.cli import app
from headwater.cli_collection import seconds
from headwater.cli_media import hits_table
from headwater.client import Hit
from headwater.wiring import open_engines
from tests.encoders import colour_fields
from tests.headwater.conftest import Headwater
from tests.indexer.conftest import eventually

JPEG = b"\xff\xd8\xff" + b"j" * 30


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*path, name))


ALL_COMMANDS = list(commands(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_design() -> None:
    named = {" ".join(path) for path in ALL_COMMANDS}
    assert {"demo", "up", "ingest", "search", "doctor", "purge", "train map", "pause", "resume", "skip", "reset", "backup", "verify"} <= named
    assert {f"run {role}" for role in ("embed", "index", "archive", "maintain", "query")} <= named
    assert {f"collection {verb}" for verb in ("create", "list", "describe", "delete", "switch", "drop-index")} <= named
    assert {f"dead-letter {verb}" for verb in ("list", "show", "replay")} <= named


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_options(headwater: Headwater, path: tuple[str, ...]) -> None:
    ended = headwater(*path, "--help")
    assert ended.code == 0
    assert "Usage: headwater" in " ".join(ended.out.split()) or "Usage:" in ended.out
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name} has no help"


def test_a_worker_whose_only_collection_cannot_be_worked_on_here_ends_with_the_error(headwater: Headwater) -> None:
    with open_engines(load_settings()) as engines:
        create_collection(engines, CollectionRequest("strange", colour_fields(), 1))  # an encoder that no installation has
    ended = headwater("run", "embed")
    assert ended.code == 2 and "encoder 'colour' is unknown" in ended.err


def test_a_collection_declares_attributes_of_every_type_and_a_retention(headwater: Headwater) -> None:
    kinds = {f"{kind}{'s' if suffix else ''}": kind + suffix for kind in ARROW_TYPES for suffix in ("", "[]")}
    declared = [part for name, kind in kinds.items() for part in ("--attribute", f"{name}:{kind}")]
    ended = headwater("collection", "create", "typed", "--vector", "own:4", "--retention", "90d", "--json", *declared)
    record = json.loads(ended.out)
    assert (record["attributes"], record["retention_seconds"]) == (kinds, 90 * 86400)
    for wrong in ("a:money", "a", ":keyword", "extra:keyword", "a:keyword[][]", "a b:keyword"):
        ended = headwater("collection", "create", "other", "--vector", "own:4", "--attribute", wrong)
        assert ended.code == 2 and ended.err.strip() and "Traceback" not in ended.err, wrong
    for wrong in ("0d", "90", "1y", "-1d"):
        assert headwater("collection", "create", "other", "--vector", "own:4", f"--retention={wrong}").code == 2


def test_the_version_is_the_distributions(headwater: Headwater) -> None:
    ended = headwater("--version")
    assert (ended.code, ended.out.strip()) == (0, f"headwater {__version__}")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", __version__)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("collection", "describe", "nothing"), 2, "collection 'nothing' does not exist"),
        (("collection", "delete", "nothing", "--yes"), 2, "collection 'nothing' does not exist"),
        (("run", "index", "--collection", "nothing"), 2, "collection 'nothing' does not exist"),
        (("collection", "create", "v", "--vector", "v:0"), 2, "vector field 'v:0' is not valid"),
        (("collection", "create", "v", "--vector", "v:3:manhattan"), 2, "another metric"),
        (("collection", "create", "v", "--vector", "v:3", "--vector", "v:4", "--encoder", "lite"), 2, "two fields are named v"),
        (("collection", "create", "v", "--vector", "v:3", "--attribute", "year:number"), 2, "attribute 'year:number' is not valid"),
        (("collection", "create", "v", "--vector", "v:3", "--retention", "long"), 2, "duration 'long' is not valid"),
        (("collection", "create", "v", "--vector", "v:3", "--start", "tomorrow"), 2, "start 'tomorrow' is not known"),
        (("collection", "create", "v", "--vector", "v:3", "--id-from", "somewhere"), 2, "id_from"),
        (("collection", "create", "v", "--vector", "v:3", "--source-topic", "none"), 2, "topic 'none' does not exist"),
        (("collection", "create", "../x", "--vector", "v:3"), 2, "name '../x' is not valid"),
        (("ingest", "no-such-folder", "-c", "x"), 2, "no-such-folder does not exist"),
        (("search", "photos", "a dog", "--url", "http://127.0.0.1:9"), 4, "does not answer"),
        (("search", "photos", "a dog", "--filter", "{"), 2, "--filter is not JSON"),
        (("search", "photos"), 2, "a text and/or an image"),
        (("demo", "--check", "."), 2, "sample media only"),
        (("demo", "."), 2, "holds no pictures"),
    ],
)
def test_an_error_is_one_line_with_a_hint_and_the_exit_code_of_its_class(
    headwater: Headwater, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended = headwater(*arguments)
    lines = ended.err.strip().splitlines()
    assert ended.code == code, ended.err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert [line for line in lines[1:] if not line.startswith("hint: ")] == []
    assert ended.out == ""


def test_a_wrong_setting_is_named_without_its_value(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_QUERY_PORT", "s3cret")
    ended = headwater("collection", "list")
    assert ended.code == 2
    assert "error: setting query_port" in ended.err
    assert "s3cret" not in ended.err


def test_a_broker_that_is_not_there_ends_with_exit_code_4(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_LOG_URL", "kafka://127.0.0.1:9")
    ended = headwater("collection", "list")
    assert ended.code == 4
    assert ended.err.startswith("error: ")
    assert "127.0.0.1:9" in ended.err


def test_a_wrong_option_is_refused_with_exit_code_2(headwater: Headwater) -> None:
    assert headwater("collection", "list", "--nonsense").code == 2


def create_vectors(headwater: Headwater, name: str = "vecs", *more: str) -> None:
    ended = headwater("collection", "create", name, "--vector", "v:4:dot:float32", "--partitions", "2", *more)
    assert ended.code == 0, ended.err


def test_a_collection_is_created_listed_described_and_deleted(headwater: Headwater) -> None:
    assert "no collections" in headwater("collection", "list").out
    create_vectors(
        headwater, "vecs", "--retention", "90d", "--attribute", "year:integer", "--attribute", "tags:keyword[]", "--partitioner", "murmur2"
    )
    (listed,) = json.loads(headwater("collection", "list", "--json").out)
    assert listed["name"] == "vecs"
    described = json.loads(headwater("collection", "describe", "vecs", "--json").out)
    record = described["collection"]
    assert (record["partitions"], record["retention_seconds"], record["partitioner"]) == (2, 90 * 86400, "murmur2")
    assert record["attributes"] == {"year": "integer", "tags": "keyword[]"}
    (field,) = record["indexes"][0]["fields"]
    assert (field["name"], field["dimension"], field["metric"], field["dtype"], field["encoder"]) == ("v", 4, "dot", "float32", None)
    assert [(row["partition"], row["next_offset"], row["behind"], row["manifest"]) for row in described["partitions"]] == [(0, 0, 0, 1), (1, 0, 0, 1)]
    assert "vecs" in headwater("collection", "list").out
    assert "incarnation" in headwater("collection", "describe", "vecs").out
    refused = headwater("collection", "create", "vecs", "--vector", "v:4")
    assert (refused.code, "exists" in refused.err) == (2, True)
    assert "add --yes" in headwater("collection", "delete", "vecs").err
    assert headwater("collection", "delete", "vecs", "--yes").code == 0
    assert json.loads(headwater("collection", "list", "--json").out) == []
    create_vectors(headwater)  # the name is free again
    assert json.loads(headwater("collection", "describe", "vecs", "--json").out)["collection"]["incarnation"] != record["incarnation"]


def test_a_collection_on_an_existing_topic_takes_its_partitions_and_start(headwater: Headwater, workplace: Path) -> None:
    create_vectors(headwater, "first")
    (workplace / "a.jpg").write_bytes(JPEG)
    assert headwater("ingest", "a.jpg", "-c", "first").code == 0
    created = headwater("collection", "create", "second", "--vector", "v:4", "--source-topic", "headwater.first.media", "--start", "latest", "--json")
    record = json.loads(created.out)
    assert (record["partitions"], record["owns_source_topic"], record["start"]) == (2, False, "latest")
    rows = json.loads(headwater("collection", "describe", "second", "--json").out)["partitions"]
    assert [row["committed_offset"] for row in rows] == [row["next_offset"] for row in rows]
    assert sum(row["next_offset"] for row in rows) == 1
    assert headwater("collection", "delete", "second", "--yes").code == 0
    assert json.loads(headwater("collection", "describe", "first", "--json").out)["partitions"][0]["start_offset"] == 0


def test_ingest_reports_what_it_sent_and_what_it_left_out(headwater: Headwater, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_vectors(headwater)
    (workplace / "media").mkdir()
    (workplace / "media" / "a.jpg").write_bytes(JPEG)
    (workplace / "media" / "notes.md").write_text("no picture")
    report = json.loads(headwater("ingest", "media", "-c", "vecs", "--json").out)
    assert (report["items"], report["size_bytes"], report["other_files"], report["rejected"]) == (1, len(JPEG), 1, {})
    assert sum(report["next_offsets"].values()) == 1
    (workplace / "captions.csv").write_text("file,caption\na.jpg,a picture\nb.jpg,missing\n")
    ended = headwater("ingest", "media", "-c", "vecs", "--captions", "captions.csv")
    assert ended.code == 0
    assert "warning b.jpg: named in captions.csv, but there is no such file" in ended.err
    assert "1 items" in ended.out
    (workplace / "media" / "b.jpg").write_bytes(JPEG + bytes(1_000_000))
    monkeypatch.setenv("HEADWATER_MAX_PICTURE_BYTES", "1000000")
    ended = headwater("ingest", "media", "-c", "vecs", "--captions", "captions.csv")
    assert (ended.code, "1 items" in ended.out) == (1, True)
    assert "too_large: media/b.jpg: 1000033 bytes, more than 1000000" in ended.err
    assert headwater("ingest", "media", "-c", "nothing").code == 2


@pytest.mark.parametrize(("text", "expected"), [("90d", 90 * 86400), ("12h", 43200), ("30m", 1800), ("5s", 5), ("2w", 14 * 86400)])
def test_durations_are_read_with_their_unit(text: str, expected: int) -> None:
    assert seconds(text) == expected


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for that signal; Python itself has one for SIGINT."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_stops_gracefully_on_a_signal(headwater: Headwater, workplace: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    create_vectors(headwater)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    process = subprocess.Popen(
        [sys.executable, "-c", "from headwater.cli import main; main(['run', 'index', '--collection', 'vecs'])"],
        cwd=workplace,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert "running index" in process.stderr.readline()
        eventually(lambda: catches(process.pid, signal.SIGTERM), what="it waits for signals")
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.wait(timeout=20) == 0, rest
    assert rest.split() == ["stopping", "stopped"]


def test_a_closed_pipe_of_the_reader_is_no_traceback(headwater: Headwater, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        create_vectors(headwater, f"c{number}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = f"{sys.executable} -c \"from headwater.cli import main; main(['collection', 'list', '--json'])\" | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=workplace, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


def test_a_stored_id_cannot_write_to_the_terminal() -> None:
    hits = [Hit("[/red]\x1b[2J\nid", 0.5, {"text": "[bold]loud[/bold]\x07", "none": None})]
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    console.print(hits_table(hits))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[/red] [2J id" in shown
    assert "[bold]loud[/bold]" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
