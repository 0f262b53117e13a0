"""The Dockerfiles: what can be run without an engine is run, what cannot is held against the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.tools import MINIO_VERSION
from deploy.lock import LEFT_OUT
from tests.deploy.commands import check_command
from tests.deploy.dockerfile import Build, chain, environment, is_in_context, read_stages
from tests.system.sites import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
STAGES = read_stages(DOCKER / "Dockerfile")
MINIO = read_stages(DOCKER / "minio.Dockerfile")
TARGETS = ("cpu", "query", "cuda")
HEALTH = DOCKER / "health.py"


def locked(name: str) -> dict[str, set[str]]:
    """Packages of a lock with their versions, which may differ by Python version."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular_knows_its_health_and_is_labelled(target: str) -> None:
    stages = chain(STAGES, target)
    [user] = [rest for stage in stages for rest in stage.all("USER")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    [health] = [rest for stage in stages for rest in stage.all("HEALTHCHECK")]
    assert '"/opt/headwater/health.py"' in health
    labels = " ".join(rest for stage in stages for rest in stage.all("LABEL"))
    assert "org.opencontainers.image.licenses" in labels and "org.opencontainers.image.title" in labels


@pytest.mark.parametrize("target", TARGETS)
def test_a_final_stage_installs_nothing_and_holds_no_compiler(target: str) -> None:
    for stage in chain(STAGES, target):
        for line in stage.all("RUN"):
            assert not re.search(r"\b(?:pip|apt-get|apk|gcc|build-essential|curl|wget)\b", line), line


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_image_is_told_to_run_is_a_command_of_ours(target: str) -> None:
    stages = chain(STAGES, target)
    [entry] = [rest for stage in stages for rest in stage.all("ENTRYPOINT")]
    assert entry == '["headwater"]'
    command = [rest for stage in stages for rest in stage.all("CMD")][-1]
    check_command(re.findall(r'"([^"]+)"', command))


def test_every_package_comes_with_its_hash_and_every_base_has_a_whole_version() -> None:
    for stage in STAGES.values():
        for line in stage.all("RUN"):
            for install in re.findall(r"pip install ([^&]+)", line):
                assert "--require-hashes" in install or ("--no-index" in install and "--no-deps" in install), line
    bases = {stage.base for stage in (*STAGES.values(), *MINIO.values())} - set(STAGES) - set(MINIO)
    assert bases
    for base in bases:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+(?:-[a-z]+)*", base), base


def test_the_minio_that_is_built_is_the_one_that_the_tests_run_on() -> None:
    [install] = [line for line in MINIO["build"].all("RUN") if "go install" in line]
    assert install.endswith(f"github.com/minio/minio@{MINIO_VERSION}")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", MINIO["final"].all("USER")[0])


def test_all_that_is_copied_from_the_context_is_there_and_nothing_private_is_in_it() -> None:
    ignore = (ROOT / ".dockerignore").read_text()
    for stage in STAGES.values():
        for rest in stage.all("COPY"):
            *sources, _ = rest.split()
            if not sources[0].startswith("--from="):
                for source in sources:
                    assert (ROOT / source).exists() and is_in_context(source, ignore), source
            else:
                assert sources[0].removeprefix("--from=") in STAGES
    for private in (
        ".env",
        ".git/config",
        "deploy/local/stack.env",
        "headwater-data/log.sqlite",
        "headwater.yaml",
        "tests/x.py",
        "query/__pycache__/x.pyc",
    ):
        assert not is_in_context(private, ignore), private


def test_every_package_of_ours_is_in_the_wheel_stage() -> None:
    packages = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages
    assert set(re.findall(r'"(\w+)"', packages[1])) == {rest.split()[0] for rest in STAGES["wheel"].all("COPY")[2:]}


@pytest.mark.parametrize("name", ["requirements-cpu.lock", "requirements-query.lock"])
def test_the_images_without_torch_have_the_versions_of_the_run_lock(name: str) -> None:
    ours, all_of_it = locked(name), locked("requirements.lock")
    assert {package for package in ours if ours[package] != all_of_it[package]} == set()
    assert not set(LEFT_OUT) & set(ours)
    assert not [package for package in ours if package.startswith("nvidia") or package == "triton"]
    assert ("openvino" in ours) == (name == "requirements-cpu.lock")


def test_health_is_bad_where_nothing_answers() -> None:
    for name in ("HEADWATER_METRICS_PORT", "HEADWATER_QUERY_PORT"):
        done = subprocess.run([sys.executable, "-I", str(HEALTH)], env={name: str(free_port())}, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "127.0.0.1" in done.stderr


WITHOUT_TORCH = """
import json, sys
blocked = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
from pathlib import Path
from contracts.settings import load_settings
from embedding.lite import LiteEncoder
import indexer.archive_role, indexer.embed_role, indexer.index_role, indexer.maintain_role, query.query_role
encoder = LiteEncoder(load_settings(networks_dir=Path(sys.argv[2]), cache_dir=Path(sys.argv[3])))
print(encoder.space.space_id, encoder.encode_texts(["a cat"]).shape, encoder.runtime)
"""


@pytest.mark.slow
@pytest.mark.model
def test_networks_converted_for_the_image_run_every_role_where_what_it_leaves_out_cannot_be_imported(tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    converted = subprocess.run([sys.executable, DOCKER / "convert_networks.py", str(folder)], cwd=ROOT, capture_output=True, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)  # noqa: TID251  # fmt: skip
    assert converted.returncode == 0, converted.stderr
    assert [path.name.rpartition("-")[0] for path in sorted(folder.iterdir())] == ["lite-image", "lite-text"]
    import json

    from embedding.lite import lite_space

    blocked = [name.replace("-", "_") for name in LEFT_OUT if name != "open-clip-torch"] + ["open_clip"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, json.dumps(blocked), str(folder), str(tmp_path / "cache")],
                          cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{lite_space().space_id} (1, 384) pictures openvino")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_query_image_is_built_step_by_step_in_a_plain_environment_and_answers(tmp_path: Path) -> None:
    """Its wheel, its lock with hashes, its entry point with the image's own variables; not the base image, not the user."""
    build = Build(STAGES, ROOT, tmp_path, sys.executable)
    for name in ("wheel", "query-packages"):
        build.run(name)
    root = build.run("query")
    assert [line.split()[0] for line in build.skipped] == ["groupadd"]
    # A venv is not meant to be moved: in the image both stages have it at one path, here they have not.
    venv = build.root("query-packages") / "opt" / "headwater" / "venv"
    assert not (venv / "bin" / "pip").exists()
    assert (root / "opt" / "headwater" / "venv" / "bin" / "headwater").exists()
    place = root / "var" / "lib" / "headwater"
    variables = {key: value.replace("/var/lib/headwater", str(place)) for key, value in environment(STAGES, "query").items() if key != "PATH"}
    port = str(free_port())
    variables |= {"HEADWATER_QUERY_PORT": port, "HEADWATER_QUERY_HOST": "127.0.0.1", "PATH": f"{venv / 'bin'}:{os.defpath}"}
    with (tmp_path / "query.log").open("wb") as log:
        role = subprocess.Popen([venv / "bin" / "headwater", "run", "query"], cwd=place, env=variables, stdout=log, stderr=log)
    try:
        deadline, check = time.monotonic() + 60, [venv / "bin" / "python", "-I", root / "opt" / "headwater" / "health.py"]
        healthy = 1
        while healthy and time.monotonic() < deadline and role.poll() is None:
            healthy = subprocess.run(check, env=variables, check=False, stderr=subprocess.DEVNULL).returncode
            time.sleep(0.2)
        assert healthy == 0 and role.poll() is None, (tmp_path / "query.log").read_text()
    finally:
        role.terminate()
        assert role.wait(30) == 0, (tmp_path / "query.log").read_text()
