"""A backup under writes, restored: nothing that was committed is missing, and what came after is taken again from the log."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.object_keys import CollectionKeys
from headwater.cli import main
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import StoredPartition, read_partition
from tests.system.sites import open_site

QUICK = {"seal_seconds": 0.1, "embed_watchdog_seconds": 0.5}


def newest(chain: ManifestChain) -> int:
    read = chain.head()
    return 0 if read is None else read.manifest.version


def seen_alone(copy: Path, folder: Path, collection: CollectionRecord) -> StoredPartition:
    """What a copy holds, without the log."""
    folder.mkdir()
    with open_site("sqlite", folder) as site:
        site.environment["HEADWATER_STORE_URL"] = f"file:///{copy}"
        with site.engines() as engines:
            return read_partition(engines, collection, 0)


def restored_log(folder: Path) -> str:
    """Address of a copy of the log, made after the store's."""
    with sqlite3.connect(folder / "log.sqlite") as source, sqlite3.connect(folder / "restored.sqlite") as target:
        source.backup(target)
    source.close()
    target.close()
    return f"sqlite:///{folder / 'restored.sqlite'}"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.minio])])
def test_backups_under_a_stream_open_and_go_on_where_the_log_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_site(kind, tmp_path, **QUICK) as site:
        for name, value in site.environment.items():
            monkeypatch.setenv(name, value)
        copy = tmp_path / "copy"
        name = f"feed-{kind}-{int(time.time())}"
        with site.engines() as engines:
            collection = make_collection(engines, name, partitions=1)
            stop, sent = threading.Event(), []

            def stream() -> None:
                while not stop.is_set():
                    sent.append(produce(engines, collection, 0, [f"i{len(sent)}"]))
                    time.sleep(0.005)

            chain = ManifestChain(engines.store, CollectionKeys(name, collection.incarnation).index("main").partition(0))
            thread = threading.Thread(target=stream)
            with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
                thread.start()
                try:
                    version = 1
                    for turn in range(3):
                        eventually(lambda least=version + 2: newest(chain) >= least, 30, "commits go on")  # type: ignore[misc]
                        version = newest(chain)
                        with pytest.raises(SystemExit) as ended:
                            main(["backup", "--to", f"file:///{copy}", "--json"])
                        assert ended.value.code in (0, None)
                        told = json.loads(capsys.readouterr().out)
                        assert told["copied"] > 0 and (turn == 0 or told["there"] > 0)
                        stored = seen_alone(copy, tmp_path / f"look{turn}", collection)
                        assert stored.manifest.version >= version
                        assert stored.is_tiled() and stored.live_rows == stored.manifest.checkpoint.media_offset
                finally:
                    stop.set()
                    thread.join()
            committed = read_partition(engines, collection, 0).live_rows
        if kind == "sqlite":
            site.environment["HEADWATER_LOG_URL"] = restored_log(tmp_path)
            shutil.rmtree(tmp_path / "store")
        old_store = site.environment["HEADWATER_STORE_URL"]
        site.environment["HEADWATER_STORE_URL"] = f"file:///{copy}"
        with site.engines() as engines:
            restored = read_partition(engines, collection, 0).live_rows
            with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
                eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == len(sent), 30)
                extra = produce(engines, collection, 0, ["after"])
                eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == extra + 1, 30)
            stored = read_partition(engines, collection, 0)
        site.environment["HEADWATER_STORE_URL"] = old_store
        assert restored <= committed and sorted(stored.live) == sorted([f"i{number}" for number in range(len(sent))] + ["after"])
        assert stored.is_tiled()
