"""One picture through every record form and every source, each found by its id: the way, and seconds from sending to found.

    python -m tests.system.ways_in_run --log sqlite|kafka

A bucket drop has a test of its own (tests/system/test_bucket_drop.py): it needs a MinIO with a notification target.

Takes: a site. Gives: a table. Owns: nothing that stays. Never: calls a way done before `GET /collections/{c}/points/{id}` answers
with the item and a search by the picture (by the text, by the vector) gives it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError
from contracts.object_keys import CollectionKeys
from headwater.client import HeadwaterClient
from ingest.async_producer import AsyncMediaProducer
from ingest.producer import MediaProducer
from ingest.records import Annotations, OutgoingRecord, cloudevent_record, plain_record, rows_record
from tests.system.processes import HEADWATER, command, done, environment_of, running
from tests.system.sites import Site, open_site, unique
from tests.system.stream import SAMPLES

DIMENSION = 8
FOUND_SECONDS = 120.0
MOST_ITEMS = 100
PICTURE = SAMPLES / "animals" / "crow.jpg"
CAPTION = "a crow"


@dataclass
class Way:
    """One way in, and seconds from sending to found (for a source: from the start of its process)."""

    name: str
    seconds: float
    payload: str


class Ways:
    """Sends the sample picture in every way, and waits for each to be found.

    Parameters
    ----------
    site, engines : Site, Engines
        Where it is sent.
    client : HeadwaterClient
        Asks whether it is found.
    pictures, rows : CollectionRecord
        A collection of pictures, and one of own vectors named ``v``.
    """

    def __init__(self, site: Site, engines: Engines, client: HeadwaterClient, pictures: CollectionRecord, rows: CollectionRecord) -> None:
        self.site, self.engines, self.client, self.pictures, self.rows = site, engines, client, pictures, rows
        self.folder = site.folder / "sources"
        self.folder.mkdir()
        self.ways: list[Way] = []

    def found(self, name: str, collection: CollectionRecord, item_id: str, send: Callable[[], object], price: float | None = None) -> None:
        """Send, wait until the item is found (and has this price, where one is given), and note the way."""
        began = time.monotonic()
        send()
        while (payload := self._payload(collection, item_id)) is None or price not in (None, payload.get("price")):
            assert time.monotonic() - began < FOUND_SECONDS, f"{name}: {item_id} is not found after {FOUND_SECONDS:g} s"
            time.sleep(0.01)
        while item_id not in self._hits(collection, item_id):
            assert time.monotonic() - began < FOUND_SECONDS, f"{name}: no search gives {item_id} after {FOUND_SECONDS:g} s"
            time.sleep(0.01)
        self.ways.append(Way(name, time.monotonic() - began, json.dumps(payload, ensure_ascii=False)))

    def _payload(self, collection: CollectionRecord, item_id: str) -> Mapping[str, Any] | None:
        try:
            return self.client.point(collection.name, item_id).payload
        except NotFoundError:
            return None

    def _hits(self, collection: CollectionRecord, item_id: str) -> set[str]:
        """Ids that a search for what was sent gives: every item of the collection is one of them, once it has a vector."""
        question: dict[str, Any] = {"text": CAPTION} if item_id == "text" else {"image": PICTURE}
        if collection is self.rows:
            question = {"vector": [1.0] * DIMENSION}
        return {hit.id for hit in self.client.search(collection.name, **question, limit=MOST_ITEMS).hits}

    # ---- record forms ------------------------------------------------------------------------------------------------

    def record_forms(self) -> None:
        data = PICTURE.read_bytes()
        with MediaProducer(self.engines.log, self.pictures, self.engines.settings) as producer:
            for name, item_id, record in self._single_records(data):
                self.found(name, self.pictures, item_id, lambda item_id=item_id, record=record: producer.send(record, item_id))
            self.found("patch of attributes", self.pictures, "plain", lambda: producer.patch("plain", {"price": 2.5}), 2.5)
        with MediaProducer(self.engines.log, self.rows, self.engines.settings) as producer:
            for dtype in (np.float16, np.float32):
                record = rows_record([f"row-{dtype.__name__}"], {"v": np.ones((1, DIMENSION), dtype)})
                item_id = f"row-{dtype.__name__}"
                send = lambda item_id=item_id, record=record: producer.send(record, item_id)  # noqa: E731
                self.found(f"Arrow rows, own vectors as {dtype.__name__}", self.rows, item_id, send)

    def _single_records(self, data: bytes) -> Iterator[tuple[str, str, OutgoingRecord]]:
        said = Annotations(CAPTION, {"price": 1.5}, None, "2026-11-23T10:00:00Z")
        yield "plain", "plain", plain_record("plain", data, "image/jpeg", said)
        yield "plain, no content type", "untyped", OutgoingRecord(b"untyped", data, ())
        yield "claim check", "claimed", OutgoingRecord(b"claimed", b"", (("content-type", b"image/jpeg"), ("hw_payload_ref", self._claim(data))))
        yield "CloudEvents binary", "event", cloudevent_record("event", data, "image/jpeg", said)
        event = {"specversion": "1.0", "id": "structured", "source": "/camera", "type": "seen", "datacontenttype": "image/jpeg"}
        body = json.dumps(event | {"data_base64": base64.b64encode(data).decode(), "hwcaption": CAPTION}).encode()
        yield "CloudEvents structured", "structured", OutgoingRecord(None, body, (("content-type", b"application/cloudevents+json"),))
        kind = (("content-type", b"application/vnd.headwater.record+json"),)
        parts = [{"content_type": "image/jpeg", "data_base64": base64.b64encode(data).decode()}, {"text": CAPTION}]
        yield "record+json, parts", "parts", OutgoingRecord(None, json.dumps({"id": "parts", "parts": parts}).encode(), kind)
        ref = [{"content_type": "image/jpeg", "ref": json.loads(self._claim(data))}]
        yield "record+json, a part by claim check", "parts-ref", OutgoingRecord(None, json.dumps({"id": "parts-ref", "parts": ref}).encode(), kind)
        yield "text", "text", plain_record("text", CAPTION.encode(), "text/plain")

    def _claim(self, data: bytes) -> bytes:
        digest = hashlib.sha256(data).hexdigest()
        key = CollectionKeys(self.pictures.name, self.pictures.incarnation).claim(digest)
        self.engines.store.put_if_absent(key, data)
        return json.dumps({"key": key, "sha256": digest, "size": len(data)}).encode()

    # ---- producers ---------------------------------------------------------------------------------------------------

    def producers(self) -> None:
        data, log, settings = PICTURE.read_bytes(), self.engines.log, self.engines.settings

        async def send() -> None:
            async with AsyncMediaProducer(log, self.pictures, settings) as producer:
                await (await producer.send_picture("async", data, "image/jpeg", caption=CAPTION))

        with MediaProducer(log, self.pictures, settings) as producer:
            self.found("MediaProducer", self.pictures, "sync", lambda: producer.send_picture("sync", data, "image/jpeg", caption=CAPTION))
        self.found("AsyncMediaProducer", self.pictures, "async", lambda: asyncio.run(send()))
        large = data + bytes(2 * settings.claim_check_bytes)  # bytes behind a JPEG's end are no part of the picture
        with MediaProducer(log, self.pictures, settings, store=self.engines.store) as producer:
            self.found("MediaProducer, large: claim check", self.pictures, "large", lambda: producer.send_picture("large", large, "image/jpeg"))

    # ---- sources -----------------------------------------------------------------------------------------------------

    def sources(self) -> None:
        self._ingest("folder with captions.csv", "folder/crow.jpg", self._folder("folder"))
        for name, path in (("CSV", self._csv()), ("JSONL", self._jsonl()), ("Parquet", self._parquet()), ("WebDataset tar", self._tar())):
            self._ingest(f"{name} manifest" if name != "WebDataset tar" else name, path.stem, path)
        vectors = self.folder / "vectors.parquet"
        pq.write_table(pa.table({"id": ["parquet-row"], "v": pa.array([[1.0] * DIMENSION], pa.list_(pa.float32()))}), vectors)
        self._ingest("Parquet with own vectors", "parquet-row", vectors, self.rows)
        line = json.dumps({"id": "stdin", "data_base64": base64.b64encode(PICTURE.read_bytes()).decode(), "caption": CAPTION}) + "\n"
        self.found("standard input", self.pictures, "stdin", lambda: self._run("-", data=line))
        self._watch()

    def _ingest(self, name: str, item_id: str, path: Path, collection: CollectionRecord | None = None) -> None:
        target = collection or self.pictures
        self.found(name, target, item_id, lambda: done(command(self.site, "ingest", str(path), "--collection", target.name)))

    def _run(self, path: str, data: str) -> None:
        subprocess.run(
            [HEADWATER, "ingest", path, "--collection", self.pictures.name],
            cwd=self.site.folder,
            env=environment_of(self.site.environment),
            input=data,
            text=True,
            capture_output=True,
            check=True,
            timeout=120,
        )

    def _folder(self, name: str) -> Path:
        folder = self.folder / name / name
        folder.mkdir(parents=True)
        shutil.copy(PICTURE, folder / "crow.jpg")
        (folder.parent / "captions.csv").write_text(f"file,caption\n{name}/crow.jpg,{CAPTION}\n")
        return folder.parent

    def _csv(self) -> Path:
        shutil.copy(PICTURE, self.folder / "crow.jpg")
        path = self.folder / "csv.csv"
        path.write_text(f"id,path,caption,price\ncsv,crow.jpg,{CAPTION},1.5\n")
        return path

    def _jsonl(self) -> Path:
        path = self.folder / "jsonl.jsonl"
        path.write_text(json.dumps({"id": "jsonl", "path": "crow.jpg", "caption": CAPTION, "attributes": {"price": 1.5}}) + "\n")
        return path

    def _parquet(self) -> Path:
        path = self.folder / "parquet.parquet"
        pq.write_table(pa.table({"id": ["parquet"], "path": ["crow.jpg"], "caption": [CAPTION], "price": [1.5]}), path)
        return path

    def _tar(self) -> Path:
        path = self.folder / "tar.tar"
        with tarfile.open(path, "w") as tar:
            for suffix, body in (("jpg", PICTURE.read_bytes()), ("txt", CAPTION.encode()), ("json", b'{"price":1.5}')):
                member = tarfile.TarInfo(f"tar.{suffix}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        return path

    def _watch(self) -> None:
        folder = self.folder / "watched"
        folder.mkdir()
        with self._watching(folder):
            time.sleep(3.0)  # until it watches
            self.found("folder with --watch", self.pictures, "crow.jpg", lambda: shutil.copy(PICTURE, folder / "crow.jpg"))

    @contextmanager
    def _watching(self, folder: Path) -> Iterator[None]:
        with (self.site.folder / "watch.stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [HEADWATER, "ingest", str(folder), "--collection", self.pictures.name, "--watch", "--settle-seconds", "0.5"],
                cwd=self.site.folder,
                env=environment_of(self.site.environment),
                stdout=stderr,
                stderr=stderr,
            )
            try:
                yield
            finally:
                process.terminate()
                process.wait(30)


def ways_in_run(site: Site) -> list[Way]:
    """Every way in, at one site."""
    names = unique("pictures"), unique("rows")
    done(command(site, "collection", "create", names[0], "--attribute", "price:float"))
    done(command(site, "collection", "create", names[1], "--vector", f"v:{DIMENSION}"))
    roles = ("up",) if site.kind == "sqlite" else ("embed", "index", "query")
    with site.engines() as engines, running(site, *roles) as processes, processes[roles[-1]].client() as client:
        ways = Ways(site, engines, client, site.collection(names[0]), site.collection(names[1]))
        ways.record_forms()
        ways.producers()
        ways.sources()
        return ways.ways


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("sqlite", "kafka"), required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headwater-ways-") as folder, open_site(asked.log, Path(folder), seal_seconds=2.0) as site:
        table = Table("way in", "found after (s)", "payload", title=asked.log)
        for way in ways_in_run(site):
            table.add_row(way.name, f"{way.seconds:.2f}", way.payload[:110])
        Console(width=180, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
