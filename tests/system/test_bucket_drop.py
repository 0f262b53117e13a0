"""A file dropped into a bucket of a real MinIO, which tells a real Kafka, is found within seconds; removed from it, it is gone."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio
from minio.commonconfig import ENABLED
from minio.notificationconfig import NotificationConfig, QueueConfig
from minio.versioningconfig import VersioningConfig

from contracts.errors import NotFoundError
from contracts.log import LogRecord, TopicSpec
from deploy.local.processes import end
from deploy.local.services import HOST, NotificationTarget, is_minio_ready, load_credentials, start_minio
from deploy.local.tools import minio_program
from headwater.client import HeadwaterClient
from tests.system.processes import command, done, running, until
from tests.system.sites import Site, StackMissingError, free_port, open_site, stack_environment, unique
from tests.system.stream import SAMPLES

logger = logging.getLogger(__name__)
CACHE = Path.home() / ".cache/headwater/stack"
BUCKET = "drop"
NAME = "animals/a bison + friends ä.jpg"
BISON, BEE = SAMPLES / "animals/bison.jpg", SAMPLES / "animals/bee3.jpg"


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[tuple[Site, str, Minio]]:
    """A site on a MinIO of its own that tells the stack's Kafka; the topic; a client of the MinIO."""
    try:
        broker = stack_environment()["HEADWATER_LOG_URL"]
    except StackMissingError as error:
        pytest.skip(str(error))
    if not minio_program(CACHE).exists():
        pytest.skip("no MinIO program: run `make stack`")
    topic, port, run_dir = f"system-test.{uuid.uuid4().hex[:12]}", free_port(), tmp_path / "minio"
    run_dir.mkdir()
    target = NotificationTarget("DROPS", int(broker.rpartition(":")[2]), topic)
    process = start_minio(CACHE, run_dir, port, target)
    try:
        until(lambda: is_minio_ready(port), 60, "MinIO is ready")
        access_key, secret_key = load_credentials(run_dir)
        with open_site("kafka", tmp_path, seal_seconds=2.0, store_access_key=access_key, store_secret_key=secret_key) as site:
            site.environment["HEADWATER_STORE_URL"] = f"s3://{HOST}:{port}/headwater-system"
            with site.engines() as engines:
                engines.log.create_topic(TopicSpec(topic, 2, retention_ms=-1))
                site.topics.append(topic)
            client = Minio(f"{HOST}:{port}", access_key, secret_key, secure=False)
            client.make_bucket(BUCKET)
            queue = QueueConfig(queue=f"arn:minio:sqs::{target.name}:kafka", events=["s3:ObjectCreated:*", "s3:ObjectRemoved:*"])
            client.set_bucket_notification(BUCKET, NotificationConfig(queue_config_list=[queue]))
            yield site, topic, client
    finally:
        end([process], run_dir)


def letters(site: Site, topic: str) -> list[LogRecord]:
    with site.engines() as engines:
        bounds = engines.log.bounds(topic)
        found = [engines.log.read_at(topic, partition, offset) for partition, b in bounds.items() for offset in range(b.start_offset, b.next_offset)]
        return [record for record in found if record is not None]


def is_found(client: HeadwaterClient, collection: str, item_id: str) -> bool:
    try:
        return any(hit.id == item_id for hit in client.search(collection, text="a bison", using="image", limit=5).hits)
    except NotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.minio
@pytest.mark.model
def test_a_file_dropped_into_a_bucket_is_searchable_in_seconds_and_gone_after_its_removal(notified: tuple[Site, str, Minio]) -> None:
    site, topic, bucket = notified
    collection = unique("drops")
    done(command(site, "collection", "create", collection, "--source-topic", topic, "--notifications", "--fields", "image"))
    item_id = f"{BUCKET}/{NAME}"
    with running(site, "up") as processes, processes["up"].client() as client:
        bucket.fput_object(BUCKET, "warm.jpg", str(BEE))  # as octet-stream: its first bytes tell what it is
        until(lambda: client.count(collection) == 1, 60, "the first file is found")
        began = time.monotonic()
        bucket.fput_object(BUCKET, NAME, str(BISON), content_type="image/jpeg")
        until(lambda: is_found(client, collection, item_id), 20, "the dropped file is found")
        seconds = time.monotonic() - began
        logger.info("found %.3f s after it was put", seconds)
        assert seconds < 10, f"{seconds:.1f} s from put to found"
        assert client.media(collection, item_id) == BISON.read_bytes()
        assert client.thumbnail(collection, item_id)[:3] == b"\xff\xd8\xff"
        bucket.fput_object(BUCKET, "notes.pdf", str(Path(__file__)))
        until(lambda: len(letters(site, f"headwater.{collection}.dead-letter")) == 1, 20, "what is no picture is explained")
        [letter] = letters(site, f"headwater.{collection}.dead-letter")
        assert letter.header("hw_reason") == b"unsupported_content_type" and letter.value is not None and b"notes.pdf" in letter.value
        bucket.remove_object(BUCKET, NAME)
        until(lambda: client.count(collection) == 1, 20, "the removed file is gone")
        with pytest.raises(NotFoundError):
            client.media(collection, item_id)
        _old_versions_do_not_count(site, topic, bucket, client, collection)


def _old_versions_do_not_count(site: Site, topic: str, bucket: Minio, client: HeadwaterClient, collection: str) -> None:
    """In a bucket with versions: the removal of an old one changes nothing, that of the object removes the item."""

    def settled() -> int:
        with site.engines() as engines:
            client.wait_for(collection, {partition: bounds.next_offset for partition, bounds in engines.log.bounds(topic).items()}, 20)
        return client.count(collection)

    bucket.set_bucket_versioning(BUCKET, VersioningConfig(ENABLED))
    old = bucket.fput_object(BUCKET, "versions.jpg", str(BEE), content_type="image/jpeg")
    new = bucket.fput_object(BUCKET, "versions.jpg", str(BISON), content_type="image/jpeg")
    until(lambda: client.count(collection) == 2, 20, "the object with versions is found")
    sent = len(letters(site, topic))
    bucket.remove_object(BUCKET, "versions.jpg", version_id=old.version_id)
    until(lambda: len(letters(site, topic)) == sent + 1, 20, "the removal of the old version is told")
    assert settled() == 2
    bucket.remove_object(BUCKET, "versions.jpg", version_id=new.version_id)
    until(lambda: len(letters(site, topic)) == sent + 2, 20, "the removal of the last version is told")
    assert settled() == 1
