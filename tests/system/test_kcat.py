"""A Kafka client that knows nothing of Headwater produces pictures; REST finds them."""

from __future__ import annotations

import hashlib

import pytest

from tests.system.kcat_run import KCAT, PARTITIONS, start_kcat
from tests.system.processes import command, done, running
from tests.system.sites import Site, unique
from tests.system.stream import SAMPLES, samples


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.kafka
@pytest.mark.minio
@pytest.mark.skipif(KCAT is None, reason="kcat is missing: apt-get install kcat")
def test_a_picture_that_kcat_produces_to_each_partition_is_found_by_text_and_by_id(stack_site: Site) -> None:
    name = unique("kcat")
    done(command(stack_site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    record = stack_site.collection(name)
    chosen = samples()[:: len(samples()) // PARTITIONS][:PARTITIONS]
    with running(stack_site, "embed", "index", "query", collection=name) as processes, processes["query"].client() as client:
        for partition, (file, caption) in enumerate(chosen):
            kcat = start_kcat(stack_site, record.source_topic, partition, f"kcat/{partition}", caption, SAMPLES / file)
            said = kcat.communicate(timeout=30)[0]
            assert kcat.returncode == 0, said
        client.wait_for(name, dict.fromkeys(range(PARTITIONS), 1), 120)
        for partition, (file, caption) in enumerate(chosen):
            item_id = f"kcat/{partition}"
            assert client.point(name, item_id).id == item_id
            assert client.search(name, text=caption, using="text", limit=1).hits[0].id == item_id
            assert client.search(name, image=SAMPLES / file, using="image", limit=1).hits[0].id == item_id
            found = client.search(name, text=caption, using="text", limit=1, with_lineage=True).hits[0]
            assert found.lineage is not None
            assert (found.lineage["partition"], found.lineage["offset"]) == (partition, 0)
            picture = client.media(name, item_id)
            assert hashlib.sha256(picture).digest() == hashlib.sha256((SAMPLES / file).read_bytes()).digest()
        assert client.count(name) == PARTITIONS
