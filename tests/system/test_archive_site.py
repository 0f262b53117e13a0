"""The archive on real logs and stores: killed while records stream in, served from when the log is empty, purged."""

from __future__ import annotations

import json
import time

import pytest

from backends.catalog.archive import archive_chain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError
from headwater.client import HeadwaterClient
from tests.indexer.archived import all_bytes, archived, logged, media, send, tar_keys
from tests.system.processes import Process, command, done, role, running, until
from tests.system.sites import Site, unique
from tests.system.stream import SAMPLES, samples

PARTITIONS = 2
TARS = {"HEADWATER_ARCHIVE_SECONDS": "1", "HEADWATER_ARCHIVE_BYTES": "200000"}


def is_archived(engines: Engines, record: CollectionRecord) -> bool:
    bounds = engines.log.bounds(record.source_topic)
    heads = {p: archive_chain(engines.store, record, p).head() for p in bounds}
    return all(read is not None and read.manifest.checkpoint.media_offset == bounds[p].next_offset for p, read in heads.items())


def archiver(site: Site, name: str) -> Process:
    process = role("archive", site, name)
    process.arguments += ["--collection", name]
    process.variables |= TARS
    return process


@pytest.mark.slow
def test_an_archiver_killed_again_and_again_while_records_stream_in_archives_each_record_once(site: Site) -> None:
    name = unique("archive")
    done(command(site, "collection", "create", name, "--vector", "v:4", "--partitions", str(PARTITIONS)))
    record = site.collection(name)
    process = archiver(site, name)
    with site.engines() as engines:
        try:
            process.start()
            process.wait_ready()
            for turn in range(4):
                for partition in range(PARTITIONS):
                    send(engines, record, partition, [f"{partition}-{turn}-{n:02d}" for n in range(100)], size_bytes=5000)
                time.sleep(1.5 + turn / 4)
                process.kill()
                process.start()
                process.wait_ready()
            until(lambda: is_archived(engines, record), 90, "everything is archived", 0.2, [process])
            assert process.stop() == 0
        finally:
            process.end()
        for partition in range(PARTITIONS):
            assert archived(engines, record, partition) == logged(engines, record, partition)
            assert archive_chain(engines.store, record, partition).head().manifest.epochs.archiver >= 2  # type: ignore[union-attr]
        victims = ["0-0-07", "1-3-99", "0-2-50"]
        report = json.loads(done(command(site, "purge", name, *victims, "--yes", "--json")))
        assert report["done"]["records_removed"] == 3
        left = all_bytes(engines, f"c/{name}-{record.incarnation}/archive/")
        assert not [victim for victim in victims if media(victim)[:200] in left or f"caption of {victim}".encode() in left]
        assert media("0-0-08", 5000) in left
        assert sum(len(archived(engines, record, p)) for p in range(PARTITIONS)) == 800 - 3
        named = {tar.key for p in range(PARTITIONS) for tar in archive_chain(engines.store, record, p).head().manifest.tars}  # type: ignore[union-attr]
        assert tar_keys(engines, record) == named


@pytest.mark.slow
@pytest.mark.model
def test_pictures_are_served_from_the_archive_when_the_media_topic_is_empty_until_they_are_purged(site: Site) -> None:
    name = unique("served")
    done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    files = [SAMPLES / file for file, _ in samples()[:12]]
    done(command(site, "ingest", *map(str, files), "-c", name))
    record = site.collection(name)
    pictures = {file.read_bytes(): file for file in files}
    site.environment |= TARS
    with running(site, "up") as processes, site.engines() as engines, processes["up"].client() as client:
        until(lambda: is_archived(engines, record), 120, "everything is archived", 0.5, list(processes.values()))
        ends = {p: b.next_offset for p, b in engines.log.bounds(record.source_topic).items()}
        client.wait_for(name, ends, 120)
        ids = [hit.id for hit in client.search(name, text="picture", limit=20).hits]
        assert len(ids) == len(files)
        engines.log.truncate(record.source_topic, ends)
        assert all(bounds.start_offset == bounds.next_offset for bounds in engines.log.bounds(record.source_topic).values())
        served = {item_id: client.media(name, item_id) for item_id in ids}
        assert set(served.values()) == set(pictures)
        assert client.thumbnail(name, ids[3]).startswith(b"\xff\xd8")
        purged = ids[:3]
        done(command(site, "purge", name, *purged, "--yes"))
        left = all_bytes(engines, f"c/{name}-{record.incarnation}/archive/")
        assert [item_id for item_id in ids if served[item_id] in left] == ids[3:]
        wait_gone(client, name, purged)
        for item_id in purged:
            with pytest.raises(NotFoundError):
                client.media(name, item_id)
        assert client.media(name, ids[5]) == served[ids[5]]


def wait_gone(client: HeadwaterClient, name: str, ids: list[str]) -> None:
    until(lambda: not {hit.id for hit in client.search(name, text="picture", limit=20).hits} & set(ids), 60, "the deletes are applied", 0.2)
