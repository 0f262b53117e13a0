"""What a process that codes rows sets once."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, resource, sys
import faiss, numpy as np
from vectors.coding_process import set_up_coding_process
from vectors.nearest_rows import NearestRows

def faults_of_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        blocks = [np.ones(12_000_000, np.uint8) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def nearest():
    rows = np.random.default_rng(0).standard_normal((3000, 512), dtype=np.float32)
    found = {}
    for metric in ("cosine", "dot", "euclid"):
        truth = NearestRows(rows[:32], 10, metric)
        truth.add(0, rows)
        found[metric] = truth.rows().tolist()
    return found

out = {"before": [nearest(), faults_of_blocks()]}
set_up_coding_process()
faults_of_blocks()
out["after"] = [nearest(), faults_of_blocks()]
print(json.dumps(out))
"""


def test_memory_stays_and_the_nearest_rows_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=True)
    told = json.loads(done.stdout)
    assert told["after"][0] == told["before"][0]
    if platform.libc_ver()[0] == "glibc":
        assert told["before"][1] > 10_000 > 1000 > told["after"][1]  # of 470,000 pages that were written
