"""docker-compose.yml: valid by the specification's schema, true to the code, and closed by default."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.settings import Settings, load_settings
from deploy.docker.environment import filled, main
from deploy.local.tools import KAFKA_VERSION
from tests.deploy.commands import check_command
from tests.deploy.dockerfile import environment, read_stages
from tests.system.processes import environment_of

ROOT = Path(__file__).resolve().parents[2]
FILES = (ROOT / "docker-compose.yml", ROOT / "deploy" / "docker" / "cuda.yml")
TEXT = FILES[0].read_text()
COMPOSE = yaml.safe_load(TEXT)
CUDA = yaml.safe_load(FILES[1].read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
EXAMPLES = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
SECRETS = {name for name, value in EXAMPLES.items() if not value}
ROLES = ("embed", "index", "archive", "maintain", "query")
PUBLISHED = {"query": 8080, "prometheus": 9090, "grafana": 3000}
STAGES = read_stages(ROOT / "deploy" / "docker" / "Dockerfile")


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def interpolated(value: str, given: dict[str, str]) -> str:
    """A value as compose would fill it in; KeyError where it refuses."""

    def one(found: re.Match[str]) -> str:
        name, operator, word = found[1], found[2], found[3]
        if given.get(name):
            return given[name]
        if operator == ":-":
            return word
        raise KeyError(name)

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", one, value)


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="no check-jsonschema: run `python3 -m deploy.setup dev`")
def test_both_files_are_valid_by_the_compose_specification_and_a_misspelt_one_is_not(tmp_path: Path) -> None:
    for path in FILES:
        done = validated(path)
        assert done.returncode == 0, done.stdout
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(TEXT.replace("healthcheck:", "health_check:"))
    assert validated(wrong).returncode != 0


@pytest.mark.parametrize("profile", ["development", "production"])
def test_docker_compose_itself_takes_the_files_with_secrets_and_refuses_them_without(profile: str, tmp_path: Path) -> None:
    """Runs where the compose plugin is installed; it needs no engine for this."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    if shutil.which(program[0]) is None or subprocess.run([*program, "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose")
    kept = {name: value for name, value in environment_of({}).items() if name not in EXAMPLES}
    env_file = tmp_path / "env"
    for text, code in ((filled(EXAMPLE), 0), (EXAMPLE, 1)):
        env_file.write_text(text)
        for files in (["-f", str(FILES[0])], ["-f", str(FILES[0]), "-f", str(FILES[1])]):
            command = [*program, "--env-file", str(env_file), *files, "--profile", profile, "config", "--quiet"]
            done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert code == 0 or "deploy.docker.environment" in done.stderr


def test_each_secret_is_asked_for_none_has_a_default_and_none_stands_in_the_file() -> None:
    for name in SECRETS:
        assert re.search(rf"\$\{{{name}:\?[^}}]+\}}", TEXT), name
        assert not re.search(rf"\$\{{{name}:?-", TEXT), name
        given = {other: "x" for other in EXAMPLES if other != name}
        with pytest.raises(KeyError, match=name):
            interpolated(TEXT, given)
    assert SECRETS == {name for name in EXAMPLES if re.search(r"(KEY|PASSWORD|CLUSTER_ID)$", name)}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|ROOT_USER|ACCESS_KEY", name):
                assert re.fullmatch(r"\$\{\w+(:\?[^}]+)?\}", value), name


def test_the_example_names_all_that_compose_reads_and_nothing_else() -> None:
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(EXAMPLES)
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    assert defaults == {name: value for name, value in EXAMPLES.items() if value}


def test_secrets_are_made_at_random_private_and_never_made_twice(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text(EXAMPLE)
    assert main(tmp_path) == 0
    path = tmp_path / ".env"
    made = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({made[name] for name in SECRETS}) == len(SECRETS)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16,}", made[name]) for name in SECRETS) and len(made["KAFKA_CLUSTER_ID"]) == 22
    assert {name: value for name, value in made.items() if name not in SECRETS} == {name: value for name, value in EXAMPLES.items() if value}
    before = path.read_text()
    assert main(tmp_path) == 2 and path.read_text() == before
    assert filled(EXAMPLE) != filled(EXAMPLE)


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_environment_is_made_of_settings_and_they_load(role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = dict(re.findall(r"^(\w+)=(.*)$", filled(EXAMPLE), re.MULTILINE))
    for values in (SERVICES[role]["environment"], SERVICES[role]["environment"] | CUDA["services"].get(role, {}).get("environment", {})):
        variables = environment(STAGES, "cpu") | {name: interpolated(value, given) for name, value in values.items()}
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                if name.startswith("HEADWATER_"):
                    patch.setenv(name, value)
            settings = load_settings()
        assert settings.kafka_password.get_secret_value() == given["HEADWATER_KAFKA_PASSWORD"]
        assert settings.query_host == settings.metrics_host == "0.0.0.0"  # noqa: S104 - in a container; what is published decides
        assert settings.metrics_port == (None if role == "query" else 9100)


def test_every_name_of_ours_in_any_of_the_files_is_a_setting() -> None:
    known = {f"HEADWATER_{name.upper()}" for name in Settings.model_fields}
    for path in (*FILES, ROOT / ".env.example", *sorted((ROOT / "deploy" / "docker").glob("*Dockerfile")), ROOT / "deploy" / "docker" / "health.py"):
        named = set(re.findall(r"\bHEADWATER_[A-Z_]+\b", path.read_text()))
        assert not named - known, path.name


@pytest.mark.parametrize("name", [*ROLES, "samples"])
def test_what_a_service_runs_is_a_command_of_ours(name: str) -> None:
    service = SERVICES[name]
    if "entrypoint" not in service:
        check_command(service["command"])
        assert service["command"] == ["run", name]
        return
    assert service["entrypoint"][0] == "sh"
    commands = [shlex.split(part) for part in re.split(r";|\|\||>[^;|]*", service["command"][0])]
    ours = [words[1:] for words in commands if words and words[0] == "headwater"]
    assert len(ours) == 3
    for arguments in ours:
        check_command(arguments)


def test_everything_is_in_a_profile_and_only_the_samples_are_for_development_alone() -> None:
    profiles = {name: set(service["profiles"]) for name, service in SERVICES.items()}
    assert profiles.pop("samples") == {"development"}
    assert all(found == {"development", "production"} for found in profiles.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert service["restart"] == ("no" if name == "samples" else "unless-stopped")
    assert service.get("read_only", False) or name == "kafka"  # its start script writes its configuration beside its programs
    assert service["logging"]["options"]["max-size"]
    assert not {"privileged", "network_mode", "pid", "ipc", "user", "cap_add"} & set(service)
    assert not [mount for mount in service["volumes"] if "docker.sock" in mount]
    for mount in service["volumes"]:
        source, _, rest = mount.partition(":")
        assert source in COMPOSE["volumes"] or ((ROOT / source).exists() and rest.endswith(":ro")), mount


def test_every_named_volume_is_used_and_no_two_services_share_one() -> None:
    used = [mount.partition(":")[0] for service in SERVICES.values() for mount in service["volumes"] if not mount.startswith(".")]
    assert sorted(used) == sorted(COMPOSE["volumes"])


def test_only_three_ports_are_published_on_loopback_and_only_they_can_be_reached() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == set(PUBLISHED)
    for name, port in PUBLISHED.items():
        [mapping] = SERVICES[name]["ports"]
        assert interpolated(mapping, {}) == f"127.0.0.1:{port}:{port}"
        assert "outside" in SERVICES[name]["networks"]  # a network that is internal publishes nothing
    assert COMPOSE["networks"]["stream"] == {"internal": True}
    for name in ("kafka", "minio", "index", "archive", "maintain", "samples"):
        assert SERVICES[name]["networks"] == ["stream"], name


def test_prometheus_scrapes_the_ports_that_the_roles_serve_metrics_on() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]}
    exposed = {int(port) for port in STAGES["runtime"].all("EXPOSE")[0].split()}
    for role in ROLES:
        [lookup] = jobs[role]["dns_sd_configs"]
        values = SERVICES[role]["environment"]
        assert lookup["names"] == [role]
        assert lookup["port"] == int(values.get("HEADWATER_METRICS_PORT", Settings.model_fields["query_port"].default))
        assert lookup["port"] in exposed
        assert set(SERVICES[role]["networks"]) & set(SERVICES["prometheus"]["networks"])
    assert (
        jobs["minio"]["static_configs"][0]["targets"] == ["minio:9000"] and SERVICES["minio"]["environment"]["MINIO_PROMETHEUS_AUTH_TYPE"] == "public"
    )
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_addresses_in_the_environment_are_services_that_are_waited_for() -> None:
    for role in ROLES:
        values = SERVICES[role]["environment"]
        hosts = {re.findall(r"//([a-z]+):", values[name])[0] for name in ("HEADWATER_LOG_URL", "HEADWATER_STORE_URL")}
        assert hosts == set(SERVICES[role]["depends_on"]) <= set(SERVICES)
        for host in hosts:
            assert SERVICES[role]["depends_on"][host] == {"condition": "service_healthy"}
            image = read_stages(ROOT / "deploy/docker/minio.Dockerfile")["final"]
            assert "healthcheck" in SERVICES[host] or (host == "minio" and image.all("HEALTHCHECK"))


def test_images_have_whole_versions_and_what_is_built_exists() -> None:
    for service in [*SERVICES.values(), *CUDA["services"].values()]:
        assert re.fullmatch(r"[a-z/-]+:v?\d[\w.]*", service["image"]), service["image"]
        build = service.get("build", {})
        if "target" in build:
            assert build["target"] in STAGES
        if "context" in build:
            assert (ROOT / build["context"] / build["dockerfile"]).is_file()
            assert service["image"].startswith("headwater-")
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert set(CUDA["services"]) <= set(SERVICES)
