"""A node with a remote encoder needs neither torch nor weights: all roles run where none of them can be imported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.log import LogProducer
from contracts.settings import load_settings
from headwater.wiring import encoder_fields, open_engines
from tests.embedding_server import MODEL, embedding_server

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("torch", "torchvision", "timm", "open_clip", "transformers", "tokenizers", "safetensors", "openvino", "onnxruntime")
NODE = """
import json, queue, sys, time
from importlib.abc import MetaPathFinder

blocked, log_url, store_url, roles = json.loads(sys.argv[1])

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())

from contracts.settings import load_settings
from headwater.client import HeadwaterClient
from headwater.run_roles import RoleRunner, role
from headwater.wiring import open_engines

settings = load_settings(log_url=log_url, store_url=store_url, query_port=0, seal_seconds=0.2)
ports = queue.Queue()
with open_engines(settings) as engines, RoleRunner({name: role(name, engines, None, ports.put) for name in roles}, 10) as runner:
    with HeadwaterClient(f"http://127.0.0.1:{ports.get(timeout=30)}") as client:
        def found(**query):
            for _ in range(300):
                runner.check()
                try:
                    hits = client.search("cards", limit=1, **query).hits
                except Exception:
                    hits = []
                if hits:
                    return hits[0].id
                time.sleep(0.1)
        first = found(text="something")
        time.sleep(1.0)
        picture = open(sys.argv[2], "rb").read()
        answers = [found(text="green meadow", using="text"), found(image=picture, using="image"), found(text="blue sky", image=picture)]
print(json.dumps([answers, sorted(name for name in blocked if name in sys.modules)]))
"""


def png(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(sink, "PNG")
    return sink.getvalue()


def send(producer: LogProducer, topic: str, key: str, colour: str, caption: str) -> None:
    headers = [("content-type", b"image/png"), ("hw_caption", caption.encode())]
    producer.send(topic, partition=0, key=key.encode(), value=png(colour), headers=headers)


@pytest.mark.parametrize("roles", [["embed", "index", "query"]])
def test_every_role_runs_and_finds_text_and_pictures_where_torch_cannot_be_imported(tmp_path: Path, roles: list[str]) -> None:
    settings = load_settings(log_url=f"sqlite:///{tmp_path}/log.sqlite", store_url=f"file:///{tmp_path}/store")
    (tmp_path / "blue.png").write_bytes(png("blue"))
    with embedding_server() as server:
        with open_engines(settings) as engines:
            fields = encoder_fields(f"remote:{server.url}#{MODEL}", ["image", "text", "fused"], settings)
            made = create_collection(engines, CollectionRequest("cards", fields, 1))
            producer = engines.log.producer()
            for key, colour, caption in (("g", "green", "green meadow"), ("b", "blue", "blue sky"), ("y", "yellow", "yellow sand")):
                send(producer, made.source_topic, key, colour, caption)
            producer.flush(10)
            producer.close()
        done = subprocess.run(
            [sys.executable, "-c", NODE, json.dumps([BLOCKED, settings.log_url, settings.store_url, roles]), str(tmp_path / "blue.png")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    answers, imported = json.loads(done.stdout)
    assert answers == ["g", "b", "b"] and imported == []
