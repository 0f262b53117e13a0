"""The HTTP service over memory log and store: what surrounds searching: description, metrics, readiness, page, port."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contracts.errors import SettingsError
from contracts.settings import load_settings
from query.query_role import COLLECT_AFTER, bind, run_query
from tests.query.conftest import wait_until
from tests.query.served import ATTRIBUTES, Served, fill, serve
from tests.query.writer import engines_for_test, writer


@pytest.fixture
def served() -> Iterator[Served]:
    engines = engines_for_test(max_body_bytes=20_000, max_limit=50)
    yield from serve(writer(engines, attributes=ATTRIBUTES, partitions=2))


def test_collections_describe_themselves_and_the_service_is_observable(served: Served) -> None:
    fill(served)
    assert served.client.get("/collections").json()["result"] == {"collections": [{"name": "things"}]}
    about = served.client.get("/collections/things").json()["result"]
    assert (about["status"], about["points_count"], about["segments_count"]) == ("green", 4, 1)
    assert about["config"]["params"]["vectors"] == {"own": {"size": 4, "distance": "Cosine"}}
    assert served.client.get("/livez").status_code == served.client.get("/readyz").status_code == 200
    served.post("query", {"query": "east"})
    served.view.observe()
    text = served.client.get("/metrics").text
    for line in (
        'headwater_tail_rows{collection="things"} 2.0',
        'headwater_segments{collection="things",state="loaded"} 1.0',
        'headwater_query_total{collection="things",outcome="ok"} 1.0',
        'headwater_time_to_searchable_seconds_count{collection="things"} 4.0',
        'headwater_index_bytes{collection="things",tier="tail"}',
        'headwater_lag_records{collection="things",partition="0",stage="query"} 0.0',
        'headwater_query_seconds_count{collection="things",stage="search"} 1.0',
        'headwater_hot_load_seconds_count{collection="things"} 1.0',
    ):
        assert line in text, line


def test_a_node_whose_collections_are_not_loaded_is_not_ready(served: Served) -> None:
    made = writer(served.made.engines, "second")
    made.publish(made.read.next(media_topic_id="another-topic"))
    served.collections.refresh()
    wait_until(lambda: bool(served.collections.get("second").state()["errors"]))
    answer = served.client.get("/readyz")
    assert answer.status_code == 503 and answer.json()["collections"]["second"]["coverage"] == 0
    assert served.client.post("/collections/second/points/count", json={}).json()["status"]["error"]["code"] == "collection_loading"


def test_openapi_describes_every_route_with_its_body(served: Served) -> None:
    assert served.client.get("/docs").status_code == 200
    schema = served.client.get("/openapi.json").json()
    body = schema["paths"]["/collections/{collection}/points/query"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].rsplit("/", 1)[1] in schema["components"]["schemas"]
    for reference in set(json.dumps(schema).split('"$ref": "')[1:]):
        assert reference.split('"')[0].rsplit("/", 1)[1] in schema["components"]["schemas"]


def test_the_page_loads_nothing_from_elsewhere_and_forbids_it(served: Served) -> None:
    page = served.client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/static/search.css", "/static/search.js"):
        answer = served.client.get(path)
        assert answer.status_code == 200 and "http://" not in answer.text and "https://" not in answer.text
        assert served.client.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert "innerHTML" not in served.client.get("/static/search.js").text


def test_the_role_serves_on_a_free_port_and_ends_when_told() -> None:
    made = writer(engines_for_test())
    made.put("a")
    stop, ports = threading.Event(), []
    thread = threading.Thread(target=run_query, args=(made.engines, stop, ports.append))
    before = gc.get_threshold()
    thread.start()
    try:
        wait_until(lambda: bool(ports))
        assert gc.get_threshold() == COLLECT_AFTER, "answers do not make the collector look at everything"
        with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}") as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            body = {"consistency": {"min_offsets": {"0": 1}}}
            assert client.post("/collections/things/points/count", json=body).json()["result"]["count"] == 1
            wait_until(lambda: client.get("/collections/things/points/a%2Fmedia").status_code == 404)
            assert client.post("/collections/things/points/query", content=b"{" + b" " * 40_000_000).status_code == 413
    finally:
        stop.set()
        thread.join(10)
        gc.set_threshold(*before)
    assert not thread.is_alive()


def test_a_port_that_is_taken_is_a_clear_settings_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError) as raised:
            bind(load_settings(query_port=taken.getsockname()[1]))
    assert raised.value.error_code == "port_taken" and "HEADWATER_QUERY_PORT" in raised.value.hint


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from tests.query.served import serve
from tests.query.writer import engines_for_test, own_field, writer
field = own_field("image").model_copy(update={"source": "image", "encoder": "lite", "space_id": "lite@0"})
for served in serve(writer(engines_for_test(), fields=[field])):
    served.made.put("a")
    served.made.put("b")
    served.settle()
    error = served.post("query", {"query": {"text": "dog", "image": "eA=="}}, 400)["status"]["error"]
    assert "torch" in error["message"] and "pip install" in error["hint"], error
    assert served.ids({"query": "a"}) == ["b"]
"""


def test_text_without_torch_is_a_400_with_the_way_out_and_ids_still_work(tmp_path: Path) -> None:
    """With an empty cache: a network that was converted before needs no torch."""
    environment = os.environ | {"HEADWATER_CACHE_DIR": str(tmp_path)}  # noqa: TID251 - for another process
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
