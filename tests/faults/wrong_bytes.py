"""Faults 26, 27 and 28: answers cut short, bits flipped, objects deleted; nobody serves or builds on bytes that nobody wrote.

Takes: a trial. Gives: `VARIANTS`. Owns: which bytes are spoilt, and what each of builder, compactor, query node and `verify` has to say.
Never: leaves a spoilt object behind: each is restored, or rebuilt from the log, before the account is taken.
"""

from __future__ import annotations

import json
import time
import urllib.request
from functools import partial
from typing import Any
from urllib.error import HTTPError

from backends.catalog.collections import CollectionCatalog
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from tests.faults.http_proxy import Rule
from tests.faults.lines import store_proxy, supervised, through
from tests.faults.store_faults import Flip, Shorten, Truncate, is_get, is_listing
from tests.faults.trial import Trial, Variant
from tests.indexer.audited import flip, head, overwrite
from tests.system.accounts import scan
from tests.system.processes import Process, command, done, until
from tests.system.sites import free_port

ROLES = ("embed", "index", "maintain")
NODE_SECONDS = 90.0


def query_node(trial: Trial, label: str, **settings: object) -> Process:
    """A query node with an empty cache of its own, not started; it serves every collection of the ground."""
    options = {"query_port": free_port(), "query_poll_seconds": 2.0, "cache_dir": trial.folder / label, "max_limit": 100_000} | settings
    variables = {f"HEADWATER_{key.upper()}": str(value) for key, value in options.items()}
    trial.roles[label] = Process(label, ["run", "query"], trial.site, variables)
    return trial.roles[label]


def state_of(node: Process, name: str) -> dict[str, Any]:
    """What ``/readyz`` says of one collection; nothing while the node does not answer or does not know it."""
    try:
        with urllib.request.urlopen(f"{node.url}/readyz", timeout=10) as answer:
            body = answer.read()
    except HTTPError as error:
        body = error.read()
    except OSError:
        return {}
    found: dict[str, Any] = json.loads(body)["collections"].get(name, {})
    return found


def verify_says(trial: Trial) -> tuple[int, list[tuple[str, str | None]]]:
    """Exit code of ``headwater verify``, and code and object of every fault that it names."""
    ended = command(trial.site, "verify", trial.record.name, "--json", timeout_seconds=300)
    assert ended.returncode in (0, 1, 6), ended.stderr[-1000:]
    found = json.loads(ended.stdout)["findings"]
    return ended.returncode, [(one["code"], one["object"]) for one in found if one["level"] != "note"]


def serves_all(trial: Trial, node: Process, seconds: float = NODE_SECONDS) -> None:
    """The node has everything that the load was told, each id once, and says that it covers all."""
    live, _ = trial.acknowledged().expected()
    until(lambda: state_of(node, trial.record.name).get("coverage") == 1.0, seconds, "the node covers all", 0.2)
    with node.client() as client:
        client.wait_for(trial.record.name, trial.acknowledged().ends(), seconds)
        found = scan(client, trial.record.name)
        assert set(found) == set(live) and max(found.values()) == 1, f"{len(found)} ids served, {len(live)} are live"
        assert client.count(trial.record.name) == len(live)


def spoilt_on_the_way(trial: Trial, *rules: Rule) -> None:
    """INV-5, 8, 10: what comes in spoilt is asked for again; nothing is built or served of it, and no partition stops for it."""
    proxy = store_proxy(trial)
    for role in ROLES:
        trial.start(role, **through(store=proxy))
    trial.wait_flowing()
    proxy.rules = list(rules)
    time.sleep(6)
    for role in ROLES:  # starts read whole chains
        trial.roles[role].must_run()
        trial.role(role, **through(store=proxy)).start()
    node = query_node(trial, "node", **through(store=proxy))
    node.start()
    with supervised(trial, most=2):
        time.sleep(10)
        spoilt = sum(rule.done for rule in proxy.rules)
        proxy.heal()
    trial.note(f"{spoilt} answers were spoilt")
    assert spoilt >= 5, f"only {spoilt} answers were spoilt"
    trial.stop_loads()
    trial.over()
    serves_all(trial, node)


def cut(trial: Trial) -> None:
    spoilt_on_the_way(trial, Rule(is_get(""), Truncate(), share=0.25), Rule(is_listing, Truncate(0.6), share=0.25))


def shortened(trial: Trial) -> None:
    spoilt_on_the_way(trial, Rule(is_get(""), Shorten(), share=0.3), Rule(is_listing, Shorten(0.6), share=0.2))


def flipped_on_the_way(trial: Trial) -> None:
    spoilt_on_the_way(trial, Rule(is_get("/i/"), Flip(), share=0.3))


# ---- at rest -----------------------------------------------------------------------------------------------------------


def settled_with_deletes(trial: Trial) -> Manifest:
    """Everything committed, the load over, and a manifest of partition 0 that names a segment and a delete delta; roles are gone."""
    trial.wait_flowing()

    def has_all() -> bool:
        found = head(trial.engines, trial.record, 0)
        return bool(found.segments and found.deletes and found.ledger)

    trial.wait_acknowledged(400)
    until(has_all, 60, "a segment and a delete delta")
    trial.stop_loads()
    trial.over()
    for role in ("embed", "index"):
        assert trial.roles[role].stop() == 0
    return head(trial.engines, trial.record, 0)


def spoilt_at_rest(trial: Trial, which: str) -> None:
    """INV-5: what is damaged is refused and named, by a query node and by `verify`; the other partition is served; restored, all is."""
    manifest = settled_with_deletes(trial)
    segment = max(manifest.segments, key=lambda each: each.rows)
    keys = CollectionKeys(trial.record.name, trial.record.incarnation).index(trial.record.active_index).partition(0)
    key = {
        "rows": segment.parts["rows"].key,
        "vectors": segment.parts["field.v"].key,
        "deletes": manifest.deletes[-1].key,
        "ledger": manifest.ledger[-1].object.key,
        "manifest": keys.manifest(manifest.version),
    }[which]
    found = trial.engines.store.get(key)
    assert found is not None
    flip(trial.engines, key)
    code, faults = verify_says(trial)
    assert code == 6 and key in {one for _, one in faults}, f"verify ends with {code} and names {faults}, not {key}"
    trial.note(f"verify: {sorted({kind for kind, _ in faults})} {key.rsplit('/', 2)[1:]}")
    node = query_node(trial, "node")
    node.start()
    if which == "ledger":  # a query node never reads it
        serves_all(trial, node)
    else:
        is_refused(trial, node, key)
    overwrite(trial.engines, key, found.data)
    assert verify_says(trial) == (0, []), "verify after the restore"
    serves_all(trial, node)


def is_refused(trial: Trial, node: Process, key: str) -> None:
    """The node names the object, serves the other partition whole, says that it does not cover all, and gives no row that is not live."""
    name = trial.record.name
    until(lambda: "0" in state_of(node, name).get("errors", {}), NODE_SECONDS, "the node says what is damaged", 0.3, [node])
    until(lambda: state_of(node, name).get("coverage", 0.0) >= 0.5, NODE_SECONDS, "the node serves the other partition", 0.3, [node])
    state = state_of(node, name)
    assert state["coverage"] < 1.0 and not state["ready"], state
    assert key.rsplit("/", 1)[-1] in state["errors"]["0"], f"{state['errors']} does not name {key}"
    live, _ = trial.acknowledged().expected()
    others = {item_id for item_id, row in live.items() if row.place[0] == 1}
    with node.client() as client:
        served = set(scan(client, name))
        coverage = client.freshness(name).coverage
    assert coverage is not None and coverage < 1.0, "a search says that it covers all"
    assert others <= served, f"{len(others - served)} rows of the other partition are not served"
    assert served <= set(live), f"rows that are not live: {sorted(served - set(live))[:5]}"
    trial.note(f"node: coverage {coverage:.2f}, {len(served)} of {len(live)} served; {state['errors']['0'][:160]}")


def deleted_and_rebuilt(trial: Trial) -> None:
    """INV-5: a segment that is gone is an error and not silence, for `verify` and for a node; `reset` builds the index anew from the log."""
    manifest = settled_with_deletes(trial)
    key = max(manifest.segments, key=lambda each: each.rows).parts["rows"].key
    trial.engines.store.delete(key)
    code, faults = verify_says(trial)
    assert code == 6 and ("object_missing", key) in faults, f"verify ends with {code} and names {faults}"
    node = query_node(trial, "node")
    node.start()
    is_refused(trial, node, key)
    for role in ("embed", "index"):
        trial.start(role)
    done(command(trial.site, "reset", trial.record.name, "--to", "earliest", "--yes"))
    catalog = CollectionCatalog(trial.engines.store)
    until(lambda: catalog.get(trial.record.name).active_index != trial.record.active_index, 60, "the new index is active", 0.3)
    old, trial.record = trial.record.active_index, catalog.get(trial.record.name)
    trial.wait_committed(trial.acknowledged().ends(), NODE_SECONDS)
    done(command(trial.site, "collection", "drop-index", trial.record.name, old, "--yes"))
    trial.record = catalog.get(trial.record.name)
    serves_all(trial, node)
    trial.note("rebuilt from the log by reset --to earliest")


VARIANTS = [
    Variant(26, "bodies cut short", cut, ()),
    Variant(26, "bodies announced too short", shortened, ()),
    Variant(27, "on the way", flipped_on_the_way, ()),
    *(Variant(27, f"{which} at rest", partial(spoilt_at_rest, which=which)) for which in ("rows", "vectors", "deletes", "ledger", "manifest")),
    Variant(28, "deleted, rebuilt from the log", deleted_and_rebuilt),
]
