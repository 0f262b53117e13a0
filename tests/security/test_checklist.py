"""Bad inputs of the security checklist that no other test sends; docs/security.md says which test holds which item."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from backends.memory_store import MemoryStore
from backends.open_store import open_store
from contracts.errors import HeadwaterError, RecordError, SettingsError, UnavailableError
from contracts.log import LogRecord
from contracts.manifest import ObjectEntry
from contracts.media_record import MAX_HEADERS, RecordLimits, RejectedItem, read_media_record
from contracts.settings import load_settings
from embedding.pictures import PictureLimits, open_picture
from headwater.logging_setup import set_up_logging
from query.query_vectors import parse_query
from query.segment_cache import SegmentCache
from tests.contracts.format_samples import collection
from tests.system.bad_inputs import EPS

ROOT = Path(__file__).resolve().parents[2]
LIMITS = RecordLimits(1 << 20, 1000, 1 << 24)


def verdict(value: bytes | None, headers: list[tuple[str, bytes]], key: bytes | None = b"id") -> str:
    (item,) = read_media_record(LogRecord("t", 0, 0, 1_700_000_000_000, key, value, tuple(headers)), collection(), LIMITS)
    return item.reason if isinstance(item, RejectedItem) else "accepted"


# ---- S3, S5: what is no picture reaches no parser --------------------------------------------------------------------

PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\nhttp://169.254.169.254/latest/meta-data/\n#EXT-X-ENDLIST\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(("data", "said"), [
    (EPS, "image/jpeg"), (PLAYLIST, "video/mp4"), (PLAYLIST, "image/jpeg"), (b"\x00\x00\x00\x18ftypmp42" + PLAYLIST, "video/mp4"),
    (SVG, "image/svg+xml"),
    (SVG, "image/png"), (b"%PDF-1.7\n", "image/png"), (b"SIMPLE  =                    T", "image/tiff"), (b"\x1f\x8b\x08" + bytes(40), "image/gif"),
], ids=["eps", "m3u8", "m3u8-jpeg", "m3u8-mp4", "svg", "svg-png", "pdf", "fits", "gzip"])  # fmt: skip
def test_what_is_no_picture_is_refused_by_its_first_bytes_and_opens_no_connection(data: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_connection)
    is_picture = said in ("image/jpeg", "image/png", "image/gif", "image/tiff")  # whoever says so is looked into, at its first bytes
    assert verdict(data, [("content-type", said.encode())]) == ("accepted" if is_picture else "unsupported_content_type")
    with pytest.raises(RecordError) as caught:
        open_picture(data, PictureLimits(1 << 24, 1 << 26))
    assert caught.value.reason == "unsupported_content_type"


# ---- S2: frames ------------------------------------------------------------------------------------------------------


def test_an_animation_of_many_frames_costs_one_frame() -> None:
    frames = [Image.new("P", (300, 300), number % 256) for number in range(500)]
    sink = io.BytesIO()
    frames[0].save(sink, "GIF", save_all=True, append_images=frames[1:], duration=10)
    open_picture(sink.getvalue(), PictureLimits(1 << 24, 1 << 26))  # what is loaded once is not counted
    tracemalloc.start()
    began = time.thread_time()
    assert open_picture(sink.getvalue(), PictureLimits(1 << 24, 1 << 26)).size == (300, 300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.thread_time() - began < 1.0 and peak < 16 * (1 << 20)


# ---- S11: URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "http://[::ffff:127.0.0.1]/", "http://2130706433/", "file:///etc/passwd", "gopher://host/x"]
)
def test_a_url_in_place_of_a_payload_or_picture_opens_no_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_connection)
    ref = {"key": url, "sha256": "0" * 64, "size_bytes": 3}
    assert verdict(b"", [("content-type", b"image/jpeg"), ("hw_payload_ref", json.dumps(ref).encode())]) == "bad_envelope"
    part = {"parts": [{"content_type": "image/jpeg", "ref": ref}], "id": "x"}
    assert verdict(json.dumps(part).encode(), [("content-type", b"application/vnd.headwater.record+json")]) == "bad_envelope"
    with pytest.raises(SettingsError):
        parse_query({"image": url})


# ---- S13: the cache on disk ------------------------------------------------------------------------------------------


def test_a_link_planted_in_the_cache_is_neither_followed_nor_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = b"segment bytes", MemoryStore()
    entry = ObjectEntry.of("c/x/part", data)
    store.put_if_absent(entry.key, data)
    victim = tmp_path / "victim"
    victim.write_bytes(b"do not touch")
    cache = SegmentCache(tmp_path / "cache", store, 0)
    place = tmp_path / "cache" / entry.sha256[:2] / entry.sha256
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim)
    assert bytes(cache.open(entry)) == data, "what lies there has another hash"
    assert victim.read_bytes() == b"do not touch"
    assert not place.is_symlink() and place.stat().st_mode & 0o077 == 0


def test_a_key_from_a_manifest_never_becomes_a_path() -> None:
    with pytest.raises(HeadwaterError):
        open_store(load_settings(store_url="memory://paths")).get("/etc/cron.d/x")
    entry = ObjectEntry.of("c/x/part", b"")
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256) and entry.sha256 == hashlib.sha256(b"").hexdigest()


# ---- S17: TLS --------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for `name`."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        f"/CN={name}",
        "-addext",
        f"subjectAltName=DNS:{name}",
    ]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server whose certificate is for `other.example` and signed by nobody we know; it answers nothing."""
    cert, key = certificate(tmp_path, "other.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    listening.settimeout(0.1)

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listening.accept()
                connection.settimeout(20)
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1000)
            except (OSError, ssl.SSLError):
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield listening.getsockname()[1], cert
    stop.set()
    thread.join()
    listening.close()


@pytest.mark.slow
def test_a_store_with_a_certificate_of_nobody_we_know_is_not_talked_to(tls_port: tuple[int, Path]) -> None:
    settings = load_settings(store_url=f"s3s://127.0.0.1:{tls_port[0]}/bucket", store_access_key="a", store_secret_key="canary-secret")
    with pytest.raises((SettingsError, UnavailableError)) as caught:
        open_store(settings).probe("doctor/")
    assert "canary-secret" not in str(caught.value)


OPENS_LOG = """
import sys
from backends.open_log import open_log
from contracts.errors import SettingsError, UnavailableError
from contracts.settings import load_settings

more = {"kafka_ca_file": sys.argv[2]} if len(sys.argv) > 2 else {}
try:
    open_log(load_settings(log_url=f"kafka://127.0.0.1:{sys.argv[1]}", kafka_security_protocol="SSL", **more))
except (SettingsError, UnavailableError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("trusts", [False, True], ids=["unknown authority", "wrong host name"])
@pytest.mark.slow
def test_a_broker_with_a_wrong_certificate_is_a_setting_to_fix(tls_port: tuple[int, Path], trusts: bool) -> None:
    """In a process of its own: kafka-python drops sockets whose handshake failed, which pytest takes for a leak."""
    port, cert = tls_port
    arguments = [sys.executable, "-W", "ignore", "-c", OPENS_LOG, str(port), *([str(cert)] if trusts else [])]
    ended = subprocess.run(arguments, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0 and ended.stdout.count("\n") == 1 and "127.0.0.1" in ended.stdout, ended.stderr


# ---- S20, S22: logs --------------------------------------------------------------------------------------------------


@pytest.fixture
def logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("kafka", "urllib3", "minio", "kafka.net.selector")}
    for handler in before:
        root.removeHandler(handler)
    yield
    root.handlers[:] = before
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_and_no_record_of_a_client_reaches_the_log_even_at_debug(
    as_json: bool, logging_kept: None, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {"store_secret_key": "canary-store-key", "kafka_password": "canary-kafka-key", "encoder_keys": {"https://host": "canary-encoder-key"}}
    set_up_logging(load_settings(**secrets, log_level="DEBUG"), as_json=as_json)
    for canary in ("canary-store-key", "canary-kafka-key", "canary-encoder-key"):
        logging.getLogger("headwater").debug("signed with %s", canary, extra={"url": f"http://u:{canary}@host"})
        try:
            raise ValueError(canary)
        except ValueError:
            logging.getLogger("headwater").exception("failed")
    for client in ("kafka.producer.kafka", "urllib3.connectionpool", "minio.api"):
        logging.getLogger(client).debug("Sending (key=b'canary-id' value=b'canary-media')")
    said = capsys.readouterr().err
    assert "signed with" in said and "failed" in said and "canary-" not in said


@pytest.mark.parametrize("as_json", [True, False])
def test_an_id_with_line_breaks_and_terminal_codes_stays_one_line(as_json: bool, logging_kept: None, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = 'x\r\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x9b31m\u2028\u202e\x00"'
    set_up_logging(load_settings(log_level="INFO"), as_json=as_json)
    logging.getLogger("headwater").info("rejected %s", hostile, extra={"id": hostile})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("\n") and said[:-1].isprintable()
    if as_json:
        assert json.loads(said)["id"] == hostile


# ---- S23: many small things ------------------------------------------------------------------------------------------


def test_a_record_with_a_hundred_thousand_headers_is_rejected_at_once() -> None:
    began = time.thread_time()
    assert verdict(b"text", [("content-type", b"text/plain"), *((f"h{n}", b"x") for n in range(100_000))]) == "bad_envelope"
    assert verdict(b"text", [("content-type", b"text/plain"), *((f"h{n}", b"x") for n in range(MAX_HEADERS - 1))]) == "accepted"
    assert time.thread_time() - began < 2


def test_attributes_with_a_million_keys_are_rejected_by_their_size() -> None:
    many = json.dumps({f"k{n}": n for n in range(1_000_000)}).encode()
    began = time.thread_time()
    assert verdict(b"text", [("content-type", b"text/plain"), ("hw_attributes", many)]) == "bad_attributes"
    assert verdict(b"text", [("content-type", b"text/plain"), ("hw_acl", json.dumps(["x" * 10] * 1_000_000).encode())]) == "bad_acl"
    assert time.thread_time() - began < 10


# ---- S24: dependencies -----------------------------------------------------------------------------------------------

OLDEST = {"pillow": (12, 3), "torch": (2, 10), "faiss-cpu": (1, 15, 1), "kafka-python": (3, 0, 12)}


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_what_is_locked_is_new_enough_and_has_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    found = dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;\\]+)", text))
    assert found, lock
    for name, oldest in OLDEST.items():
        if name in found:
            assert tuple(int(part) for part in re.findall(r"\d+", found[name])[: len(oldest)]) >= oldest, f"{lock}: {name}"
    assert found.get("minio", "7.2.20") == "7.2.20", "another version sends other headers"
    blocks = re.split(r"(?m)^(?=[a-z0-9._-]+==)", text)[1:]
    assert all("--hash=sha256:" in block for block in blocks), "a package without a hash"
