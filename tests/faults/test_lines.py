"""What rules take, what the broker is told of its faulty listeners, and what parts change within a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.local.services import kafka_properties
from tests.faults.ground import FAULTY_LINES, with_faulty_listeners
from tests.faults.http_proxy import Request, Rule
from tests.faults.store_faults import Refuse, is_get, is_listing, is_put

PORTS = {f"{side}{number}": base + number for side, base in (("behind", 100), ("faulty", 200)) for number in range(FAULTY_LINES)}


def test_each_faulty_listener_sends_its_clients_to_the_port_of_a_proxy_and_the_others_stay(tmp_path: Path) -> None:
    before = dict(line.split("=", 1) for line in kafka_properties(tmp_path, 1, 2).splitlines())
    after = dict(line.split("=", 1) for line in with_faulty_listeners(kafka_properties(tmp_path, 1, 2), PORTS).splitlines())
    assert after["listeners"].startswith(before["listeners"] + ",") and "FAULTY3://127.0.0.1:103" in after["listeners"]
    assert (
        after["advertised.listeners"].startswith(before["advertised.listeners"] + ",") and "FAULTY3://127.0.0.1:203" in after["advertised.listeners"]
    )
    assert all(f"FAULTY{number}:PLAINTEXT" in after["listener.security.protocol.map"] for number in range(FAULTY_LINES))
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"listeners", "advertised.listeners", "listener.security.protocol.map"}


def test_a_rule_takes_what_it_matches_behind_those_it_skips_and_no_more_than_its_most() -> None:
    rule = Rule(is_put("/manifest/"), Refuse(503), most=2, skip=1)
    conditional = (("If-None-Match", "*"),)
    manifest, other = Request("PUT", "/bucket/p0/manifest/1.json", conditional), Request("PUT", "/bucket/p0/rows", conditional)
    assert [rule.takes(each) for each in (manifest, other, manifest, manifest, manifest)] == [False, False, True, True, False]
    assert not is_put("")(Request("PUT", "/bucket", ())) and is_listing(Request("GET", "/bucket?list-type=2", ()))
    assert is_get("")(Request("GET", "/bucket/a%2Fb", ())) and Request("GET", "/bucket/a%2Fb?x=1", ()).key == "a/b"


def test_a_clock_is_off_by_what_its_file_says_now(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    code = f"""
import time, datetime
from pathlib import Path
from tests.faults.parts import follow_clock
true = time.time()
follow_clock({json.dumps({"file": str(file), "dates": True}).replace("true", "True")})
for off in (86400.0, -3600.0, 0.0):
    Path({str(file)!r}).write_text(str(off))
    import minio.time
    for told in (time.time(), minio.time.utcnow().timestamp()):
        assert abs(told - true - off) < 60, (told, true, off)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)
