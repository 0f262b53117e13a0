"""The bare reference of W2, a process of its own: the same rows into an empty faiss index of the same generation, out of memory.

    python -m bench.bare_add COLLECTION FILE        for each line on stdin: fill an index, and answer one JSON object

IVF-PQ with an SQ8 refine index behind it (faiss.IndexRefine), as somebody would use faiss without us; the vectors are float32 already. OpenMP has as
many threads as faiss takes by itself, which are those of the builder.

Takes: settings from the environment, a stored generation, rows as a .npy file of shape (n, d). Gives: rows, seconds, CPU-seconds. Owns: its rows.
Never: stores or reads anything while the clock runs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from backends.catalog.collections import CollectionCatalog
from backends.catalog.generations import FIRST_GENERATION, load_generation
from contracts.collection import CollectionRecord
from contracts.errors import NotFoundError
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from contracts.store import ObjectStore
from headwater.wiring import open_engines
from vectors.quantizer import Quantizer


def add_once(quantizer: Quantizer, matrix: NDArray[np.float32]) -> dict[str, Any]:
    """Fill a new index with rows, shape (n, d); what that took."""
    begin, spent = time.perf_counter(), time.process_time()
    index = faiss.IndexRefine(quantizer.new_index(), quantizer.new_refine_index())
    index.add(matrix)
    return {"rows": int(index.ntotal), "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - spent}


def open_quantizer(store: ObjectStore, collection: CollectionRecord) -> Quantizer:
    """The quantizer of the collection's first generation; NotFoundError where there is none."""
    field = collection.index().fields[0]
    keys = CollectionKeys(collection.name, collection.incarnation).index(collection.index().name)
    found = load_generation(store, keys, field, FIRST_GENERATION)
    if found is None:
        raise NotFoundError(f"collection {collection.name} has no generation", hint="publish one first")
    return Quantizer.open(found)


def main(arguments: list[str]) -> None:
    """Run until stdin is closed."""
    name, rows = arguments
    with open_engines(load_settings()) as engines:
        quantizer = open_quantizer(engines.store, CollectionCatalog(engines.store).get(name))
    matrix = np.load(rows).astype(np.float32)
    print(json.dumps({"threads": faiss.omp_get_max_threads()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(add_once(quantizer, matrix)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
