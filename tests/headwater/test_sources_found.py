"""One picture through each source of `headwater ingest`, found again by itself in a running service."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import shutil
import tarfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.settings import load_settings
from headwater import HeadwaterClient
from headwater.run_roles import Role, RoleRunner, role
from headwater.wiring import encoder_fields, open_engines
from ingest.ingest_run import IngestRun, ingest_sources
from ingest.input_item import InputRules
from ingest.producer import MediaProducer
from ingest.sources import open_sources
from ingest.watch import Watch, WatchOptions

pytestmark = pytest.mark.model
SAMPLES = Path(__file__).parents[2] / "examples" / "media"
SOURCES = ("folder", "captions", "sidecar", "csv", "jsonl", "parquet", "tar", "tar.gz", "stdin", "single", "watch")


def lay_out(folder: Path) -> dict[str, tuple[Path, str, Path]]:
    """Per source, its path, the id of its picture, and the picture: another one for each."""
    pictures = dict(zip(SOURCES, sorted(SAMPLES.rglob("*.jpg"))[:: 325 // len(SOURCES)], strict=False))
    for source in ("folder", "captions", "sidecar", "csv", "watch"):
        (folder / source).mkdir()
        shutil.copy(pictures[source], folder / source / f"{source}.jpg")
    (folder / "captions" / "captions.csv").write_text("file,caption,note\ncaptions.jpg,a caption of captions,n\n")
    (folder / "sidecar" / "sidecar.txt").write_text("a caption of sidecar")
    (folder / "csv" / "list.csv").write_text("id,path,caption\nthe csv,csv.jpg,a caption of csv\n")
    encoded = {source: base64.b64encode(pictures[source].read_bytes()).decode() for source in ("jsonl", "stdin")}
    (folder / "list.jsonl").write_text(json.dumps({"id": "the jsonl", "data_base64": encoded["jsonl"], "caption": "a caption of jsonl"}) + "\n")
    (folder / "stdin").write_text(json.dumps({"id": "the stdin", "data_base64": encoded["stdin"]}) + "\n")
    pq.write_table(pa.table({"id": ["the parquet"], "data": pa.array([pictures["parquet"].read_bytes()], pa.binary())}), folder / "list.parquet")
    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(folder / f"shard.{suffix}", mode) as tar:  # type: ignore[call-overload]
            tar.add(pictures[suffix], f"the {suffix}/0001.jpg")
    shutil.copy(pictures["single"], folder / "single.jpg")
    places = {
        "folder": (folder / "folder", "folder.jpg"),
        "captions": (folder / "captions", "captions.jpg"),
        "sidecar": (folder / "sidecar", "sidecar.jpg"),
        "csv": (folder / "csv" / "list.csv", "the csv"),
        "jsonl": (folder / "list.jsonl", "the jsonl"),
        "parquet": (folder / "list.parquet", "the parquet"),
        "tar": (folder / "shard.tar", "the tar/0001"),
        "tar.gz": (folder / "shard.tar.gz", "the tar.gz/0001"),
        "stdin": (Path("-"), "the stdin"),
        "single": (folder / "single.jpg", "single.jpg"),
        "watch": (folder / "watch", "watch.jpg"),
    }
    return {source: (*place, pictures[source]) for source, place in places.items()}


def watch_once(engines: Engines, collection: CollectionRecord, path: Path, state: Path) -> dict[int, int]:
    opened = open_sources([path], InputRules.of(collection, engines.settings))
    with MediaProducer(engines.log, collection, engines.settings, bulk=True, store=engines.store) as producer:
        run, stop = IngestRun(producer), threading.Event()
        for file in path.iterdir():
            os.utime(file, (1, 1))
        watch = Watch(run, opened, WatchOptions(0.05, 0.1), state)
        watch.look(stop)
        stop.set()
        return watch.follow(stop).next_offsets


def test_a_picture_of_every_source_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    places = lay_out(tmp_path / "in")
    settings = load_settings(
        log_url=f"sqlite:///{tmp_path}/log.sqlite", store_url=f"file:///{tmp_path}/store", cache_dir=tmp_path / "cache", query_port=0
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in" / "stdin").read_bytes())))
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    with open_engines(settings) as engines:
        collection = create_collection(engines, CollectionRequest("photos", encoder_fields("lite", ["image"]), partitions=2))
        roles: dict[str, Role] = {"embed": role("embed", engines), "index": role("index", engines), "query": role("query", engines, None, ports.put)}
        with RoleRunner(roles, settings.stop_seconds), HeadwaterClient(f"http://127.0.0.1:{ports.get(timeout=60)}") as client:
            for source, (path, _, _) in places.items():
                if source == "watch":
                    offsets = watch_once(engines, collection, path, tmp_path / "cache")
                else:
                    opened = open_sources([path], InputRules.of(collection, settings))
                    with MediaProducer(engines.log, collection, settings, bulk=True, store=engines.store) as producer:
                        report = ingest_sources(IngestRun(producer), opened, tmp_path / "cache")
                        assert (report.items, dict(report.rejected)) == (1, {}), source
                        offsets = report.next_offsets
                client.wait_for("photos", offsets, timeout_seconds=60)
            assert client.count("photos") == len(SOURCES)
            for source, (_, item_id, picture) in places.items():
                (hit,) = client.search("photos", image=picture, using="image", limit=1).hits
                assert (hit.id, hit.score) == (item_id, pytest.approx(1.0, abs=0.02)), source
                caption = hit.payload.get("text")
                assert caption == (f"a caption of {source}" if source in ("captions", "sidecar", "csv", "jsonl") else None), source
