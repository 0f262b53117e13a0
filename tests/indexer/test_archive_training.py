"""The archive is a WebDataset as it is: the `webdataset` library reads it, and a small model trains on it."""

from __future__ import annotations

import gc
import io
import random
from pathlib import Path

import numpy as np
import pytest

from backends.catalog.archive import read_tar
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from tests.indexer.archived import head, logged
from tests.indexer.conftest import delete, produce
from tests.indexer.test_purge import archive_all

MEDIA = Path(__file__).parents[2] / "examples" / "media"
CLASSES = ("plants", "vehicles")


def send_pictures(engines: Engines, collection: CollectionRecord, per_class: int) -> int:
    producer, sent = engines.log.producer(), 0
    for number in range(per_class):
        for label in CLASSES:
            path = sorted((MEDIA / label).glob("*.jpg"))[number]
            headers = [("content-type", b"image/jpeg"), ("hw_caption", path.stem.encode()), ("hw_attributes", f'{{"label":"{label}"}}'.encode())]
            producer.send(collection.source_topic, partition=sent % 2, key=path.name.encode(), value=path.read_bytes(), headers=headers).result(10)
            sent += 1
    producer.close()
    return sent


def tars_on_disk(engines: Engines, collection: CollectionRecord, folder: Path) -> list[str]:
    paths = []
    for partition in range(collection.partitions):
        for tar in head(engines, collection, partition).tars:
            path = folder / f"{partition}-{len(paths):04d}.tar"
            path.write_bytes(read_tar(engines.store, tar))
            paths.append(str(path))
    return paths


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its shards to the garbage collector
def test_the_webdataset_library_reads_the_archive_and_a_linear_probe_trains_on_it(
    engines: Engines, collection: CollectionRecord, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    wds = pytest.importorskip("webdataset")
    from PIL import Image

    sent = send_pictures(engines, collection, per_class=20)
    produce(engines, collection, 0, ["v-1"])
    delete(engines, collection, 1, "v-1")
    archive_all(engines, collection, archive_bytes=300_000)
    paths = tars_on_disk(engines, collection, tmp_path)
    assert len(paths) >= 3

    every = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    records = {(p, o): r for p in (0, 1) for o, r in logged(engines, collection, p).items()}
    assert len(every) == len(records) == sent + 2, "one sample a record, and none for the index"
    for sample in every:
        record = records[(sample["json"]["partition"], int(sample["__key__"]))]
        assert sample["json"]["id"] == (record.key or b"v-1").decode()
        assert sample.get("txt") == (None if (caption := record.header("hw_caption")) is None else caption.decode())
        assert ("jpg" in sample) == (record.value or b"").startswith(b"\xff\xd8")

    def features(picture: bytes) -> np.ndarray:
        small = Image.open(io.BytesIO(picture)).convert("RGB").resize((12, 12))
        return (np.asarray(small, np.float32) / 255 - 0.5).ravel()

    dataset = (
        wds.WebDataset(paths, shardshuffle=False, empty_check=False)
        .select(lambda sample: "jpg" in sample)
        .decode(only=["json"])
        .to_tuple("jpg", "json")
        .map_tuple(features, lambda told: CLASSES.index(told["attributes"]["label"]))
        .shuffle(100, rng=random.Random(1))
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    torch.manual_seed(0)
    probe = torch.nn.Linear(12 * 12 * 3, len(CLASSES))
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.003, weight_decay=0.01)
    losses = []
    for _ in range(30):
        seen, total = 0, 0.0
        for batch, labels in loader:
            loss = torch.nn.functional.cross_entropy(probe(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen, total = seen + len(labels), total + loss.item() * len(labels)
        assert seen == sent
        losses.append(total / seen)
    assert losses[-1] < 0.5 * losses[0], losses
    del loader, dataset
    gc.collect()
