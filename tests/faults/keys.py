"""Fault 43: credentials are taken away and replaced, a certificate expires and is replaced, while roles run.

Takes: a trial. Gives: `VARIANTS`. Owns: users of the ground's MinIO, a MinIO with TLS, an authority of its own. Never: leaves a user behind.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import urllib3
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from contracts.errors import UnavailableError
from deploy.local.processes import end
from deploy.local.services import HOST, load_credentials, start_minio
from tests.faults.ground import BUCKET, CACHE, Ground
from tests.faults.grounds import DiskGround
from tests.faults.lines import ended, supervised
from tests.faults.tcp_proxy import TcpProxy
from tests.faults.trial import Trial, Variant
from tests.faults.wrong_bytes import query_node, serves_all, state_of
from tests.system.processes import until
from tests.system.sites import free_port

# ---- credentials -------------------------------------------------------------------------------------------------------


@contextmanager
def user(trial: Trial, name: str) -> Iterator[dict[str, str]]:
    """A user of the store who may read and write; gives the settings of a role that is this user."""
    settings = trial.site.settings()
    root = StaticProvider(settings.store_access_key, settings.store_secret_key.get_secret_value())
    admin = MinioAdmin(endpoint=f"{HOST}:{trial.ground.ports['minio']}", credentials=root, secure=False)
    secret = secrets.token_hex(16)
    admin.user_add(name, secret)
    admin.policy_set("readwrite", user=name)
    try:
        yield {"store_access_key": name, "store_secret_key": secret}
    finally:
        admin.user_remove(name)


def rotated(trial: Trial) -> None:
    """INV-1, 10: keys are taken away while roles run: they end and name the settings to change, and their successors with new keys go on."""
    name = f"faults-{secrets.token_hex(4)}"
    with user(trial, name) as old:
        for role in ("embed", "index", "maintain"):
            trial.start(role, **old)
        node = query_node(trial, "node", **old)
        node.start()
        trial.wait_flowing()
        until(lambda: state_of(node, trial.record.name).get("coverage") == 1.0, 60, "the node serves the collection", 0.3, [node])
    for role in ("index", "maintain"):
        process = trial.roles[role]
        until(lambda: not process.is_running(), 60, f"{role} ends without its key", 0.2)  # noqa: B023
        code = process.has_died()
        errors = [line for line in process.stderr().splitlines() if line.startswith(("error: ", "hint: "))]
        assert code == 2 and any("HEADWATER_STORE_SECRET_KEY" in line for line in errors), f"{role} ended with {code}: {errors}"
        trial.note(f"{role} ended with {code}: {errors[0][:120]}")
    node.must_run()  # it serves what it has
    with node.client() as client:
        assert client.count(trial.record.name) > 0
    new = trial.stack.enter_context(user(trial, name))
    for role in ("embed", "index", "maintain"):
        trial.start(role, **new)
    node.end()
    node = query_node(trial, "node", **new)
    node.start()
    trial.wait_acknowledged(100)
    trial.stop_loads()
    trial.over()
    serves_all(trial, node)


# ---- certificates ------------------------------------------------------------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"openssl {arguments[0]}: {done.stderr[-500:]}"


def make_authority(folder: Path) -> Path:
    """An authority of our own; gives its certificate."""
    folder.mkdir(parents=True)
    subject = ["-subj", "/CN=faults", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    openssl(
        folder,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        *subject,
    )
    (folder / "index.txt").touch()
    (folder / "index.txt.attr").write_text("unique_subject = no\n")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=any\n"
        "certificate=ca.crt\nprivate_key=ca.key\nx509_extensions=server\n[any]\ncommonName=supplied\n"
        f"[server]\nsubjectAltName=IP:{HOST}\nbasicConstraints=CA:FALSE\n"
    )
    return folder / "ca.crt"


def make_certificate(authority: Path, target: Path, from_seconds: float, to_seconds: float) -> None:
    """A certificate of 127.0.0.1, valid between two times that are counted from now, put where MinIO looks for it."""
    folder, stamp = authority.parent, "%y%m%d%H%M%SZ"
    begins, ends = (time.strftime(stamp, time.gmtime(time.time() + seconds)) for seconds in (from_seconds, to_seconds))
    openssl(
        folder,
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "new.key",
        "-out",
        "new.csr",
        "-subj",
        f"/CN={HOST}",
    )
    openssl(folder, "ca", "-batch", "-notext", "-config", "ca.conf", "-startdate", begins, "-enddate", ends, "-in", "new.csr", "-out", "new.crt")
    target.mkdir(exist_ok=True)
    for name, made in (("private.key", "new.key"), ("public.crt", "new.crt")):
        fresh = target / f"{name}.new"
        fresh.write_bytes((folder / made).read_bytes())
        fresh.replace(target / name)


class SecureGround(DiskGround):
    """A ground whose store speaks TLS behind a line that can be reset; `authority` is whom its clients trust."""

    def __init__(self, folder: Path, urls: dict[str, str], authority: Path, line: TcpProxy, store_pid: int) -> None:
        super().__init__(folder, folder, urls)
        self.authority, self.line, self._store_pid = authority, line, store_pid

    def change_certificate(self, from_seconds: float, to_seconds: float) -> None:
        """Give the store another certificate; it reads it anew, and shows it to new connections."""
        make_certificate(self.authority, self.folder / "run" / "minio-certs", from_seconds, to_seconds)
        os.kill(self._store_pid, signal.SIGHUP)

    def is_trusted(self) -> bool:
        """Whether a new connection to the store succeeds, its certificate verified."""
        return is_up(urllib3.PoolManager(ca_certs=str(self.authority), retries=False), self.line.upstream[1])


@contextmanager
def secure(usual: Ground, folder: Path) -> Iterator[SecureGround]:
    """The usual broker, and a MinIO of its own with a certificate of an authority of its own."""
    run_dir, port = folder / "run", free_port()
    run_dir.mkdir(parents=True)
    authority = make_authority(folder / "authority")
    make_certificate(authority, run_dir / "minio-certs", -3600, 86_400)
    record = start_minio(CACHE, run_dir, port)
    try:
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(authority)}), ended(TcpProxy((HOST, port))) as line:  # noqa: TID251 - of OpenSSL
            pool = urllib3.PoolManager(ca_certs=str(authority), retries=False)
            until(lambda: is_up(pool, port), 30, "the MinIO with TLS is ready")
            access_key, secret_key = load_credentials(run_dir)
            store = {"URL": f"s3s://{line.address}/{BUCKET}", "ACCESS_KEY": access_key, "SECRET_KEY": secret_key}
            urls = usual.environment() | {f"HEADWATER_STORE_{name}": value for name, value in store.items()}
            ground = SecureGround(folder, urls, authority, line, record.pid)
            try:
                yield ground
            finally:
                ground.end_query()
    finally:
        end([record], run_dir)


def is_up(pool: urllib3.PoolManager, port: int) -> bool:
    try:
        return pool.request("GET", f"https://{HOST}:{port}/minio/health/cluster").status == 200
    except urllib3.exceptions.HTTPError:
        return False


def certificate(trial: Trial, seconds: float = 8.0) -> None:
    """INV-1, 10: the store's certificate expires: every new connection fails; with a new one all go on, nobody having accepted the old."""
    ground = trial.ground
    assert isinstance(ground, SecureGround)
    trial.wait_flowing()
    with supervised(trial, most=20):
        ground.change_certificate(-7200, -3600)
        until(lambda: not ground.is_trusted(), 60, "the store shows its expired certificate", 0.3)
        ground.line.reset()
        time.sleep(0.5)
        try:
            trial.checkpoint(0)
        except UnavailableError as error:
            trial.note(str(error))
        else:
            raise AssertionError("an expired certificate was accepted")
        time.sleep(seconds)
        ground.change_certificate(-60, 86_400)
        until(ground.is_trusted, 60, "the store shows its new certificate", 0.3)
    trial.wait_acknowledged(50)


VARIANTS = [
    Variant(43, "keys are taken away and replaced", rotated, ()),
    Variant(43, "the store's certificate expires and is replaced", certificate, on=secure),
]
