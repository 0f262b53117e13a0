"""Pictures produced by Debian's kcat are found over REST: how long from the start of kcat to the first answer that holds the picture.

    python -m tests.system.kcat_run [--times 20]

Takes: the local stack. Gives: a line per picture, p50 and max. Owns: nothing that stays.
Never: uses a producer of ours: the point is that any Kafka client can produce.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from contracts.collection import CollectionRecord
from contracts.errors import NotFoundError
from headwater.client import HeadwaterClient
from tests.system.conftest import SEAL_SECONDS
from tests.system.processes import command, done, running
from tests.system.sites import Site, open_site, unique
from tests.system.stream import SAMPLES, samples

KCAT = shutil.which("kcat")
PARTITIONS = 4
FOUND_SECONDS = 60.0
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Found:
    """One picture, from the start of kcat on: when kcat had ended, when a search held it, when its id answered; seconds."""

    item_id: str
    partition: int
    produced_seconds: float
    searched_seconds: float
    fetched_seconds: float


def start_kcat(site: Site, topic: str, partition: int, item_id: str, caption: str, picture: Path) -> subprocess.Popen[str]:
    """Start kcat with one JPEG as one record: key, ``content-type`` and ``hw_caption`` as any Kafka client would set them."""
    assert KCAT is not None, "kcat is missing: apt-get install kcat"
    broker = site.settings().log_url.removeprefix("kafka://")
    headers = ["-H", "content-type=image/jpeg", "-H", f"hw_caption={caption}"]
    arguments = [KCAT, "-P", "-b", broker, "-t", topic, "-p", str(partition), "-k", item_id, *headers, str(picture)]
    return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def produce_and_find(site: Site, record: CollectionRecord, client: HeadwaterClient, number: int) -> Found:
    """Produce sample picture `number` to partition ``number % 4`` and search its caption until the picture is among the hits."""
    file, text = samples()[number * 7 % len(samples())]
    item_id, caption, partition = f"kcat/{number}", f"{text} number {number}", number % PARTITIONS
    began = time.monotonic()
    kcat = start_kcat(site, record.source_topic, partition, item_id, caption, SAMPLES / file)
    produced = searched = fetched = None
    while searched is None or fetched is None or produced is None:
        if produced is None and kcat.poll() is not None:
            produced = time.monotonic() - began
            output = kcat.communicate()[0]
            assert kcat.returncode == 0, f"kcat ended with {kcat.returncode}: {output}"
        if searched is None and item_id in [hit.id for hit in client.search(record.name, text=caption, using="text", limit=5).hits]:
            searched = time.monotonic() - began
        if fetched is None and is_there(client, record.name, item_id):
            fetched = time.monotonic() - began
        assert time.monotonic() - began < FOUND_SECONDS, f"{item_id} is not found"
        time.sleep(POLL_SECONDS)
    return Found(item_id, partition, produced, searched, fetched)


def is_there(client: HeadwaterClient, collection: str, item_id: str) -> bool:
    try:
        return client.point(collection, item_id).id == item_id
    except NotFoundError:
        return False


def kcat_run(site: Site, times: int, console: Console) -> list[Found]:
    """Three role processes on the stack; `times` pictures, one after the other."""
    name = unique("kcat")
    done(command(site, "collection", "create", name, "--partitions", str(PARTITIONS)))
    record = site.collection(name)
    with running(site, "embed", "index", "query", collection=name) as processes, processes["query"].client() as client:
        produce_and_find(site, record, client, 1000)  # loads the encoders: a start, not a find
        found = []
        for number in range(times):
            found.append(produce_and_find(site, record, client, number))
            console.print(f"{found[-1].item_id} to partition {found[-1].partition}: found after {found[-1].searched_seconds:.3f} s")
            time.sleep(0.2)
    return found


def show(found: list[Found], console: Console) -> None:
    """Print p50 and max."""
    table = Table("from the start of kcat to", "p50 (s)", "max (s)")
    for what, values in (
        ("kcat's own end (delivered)", [f.produced_seconds for f in found]),
        ("found by text", [f.searched_seconds for f in found]),
        ("found by id", [f.fetched_seconds for f in found]),
    ):
        table.add_row(what, f"{statistics.median(values):.3f}", f"{max(values):.3f}")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    console = Console(width=120, highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="headwater-kcat-") as folder,
        open_site("kafka", Path(folder), seal_seconds=SEAL_SECONDS) as site,
    ):
        show(kcat_run(site, asked.times, console), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
