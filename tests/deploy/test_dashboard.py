"""The dashboard and its Prometheus: every panel shows something of a live deployment, and every name in it exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from contracts.metrics import Metrics
from deploy.grafana.dashboard import OVERVIEW, filled_in, legend, read_panels
from deploy.grafana.prometheus_api import QueryError, query_now
from docs import generate
from tests.deploy.live_stream import PROMETHEUS_FOLDER, RATE_SECONDS, answers, live_stream

NO_ALERT_ON_A_GOOD_DAY = {"HeadwaterRoleDown", "HeadwaterDeadLettersJump"}
"""One process is scraped as one role here, and one record in forty is bad."""
FILL_SECONDS = 90.0
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no prometheus: run `apt-get install prometheus`, or `make test`"
)
PANELS = read_panels()


def promtool(*arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", *arguments], input=given, cwd=PROMETHEUS_FOLDER, capture_output=True, timeout=60, check=False)


def exposed_names() -> dict[str, set[str]]:
    """Every name that our processes expose, with its labels."""
    names = {}
    for metric in Metrics().registry.collect():
        made = next(value for value in vars(Metrics(None)).values() if getattr(value, "_name", None) == metric.name)
        labels = set(made._labelnames)
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(metric.type, ("",))
        names |= {metric.name + ending: labels | ({"le"} if ending == "_bucket" else set()) for ending in endings}
    return names


def written_queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        yield from ((panel.title, query) for query, _ in panel.targets)
    for group in yaml.safe_load((PROMETHEUS_FOLDER / "rules.yml").read_text())["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


@pytest.mark.parametrize(("where", "query"), list(written_queries()))
def test_every_metric_and_label_in_panels_and_alerts_is_one_of_ours(where: str, query: str) -> None:
    known = exposed_names()
    found = re.findall(r"\b(headwater_\w+)(?:{([^}]*)})?", query)
    assert found or where in ("Alerts", "Processes", "HeadwaterRoleDown")
    for name, selector in found:
        assert name in known, name
        assert not set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selector)) - known[name]
    for words in re.findall(r"\bby \(([^)]*)\)", query):
        shared = set.union(*(known[name] for name, _ in found)) if found else {"job"}
        assert not {word.strip() for word in words.split(",")} - shared, query


def test_every_legend_names_labels_that_its_query_keeps() -> None:
    for panel in PANELS:
        for query, text in panel.targets:
            kept = {word.strip() for words in re.findall(r"^(?:sum|max|min) by \(([^)]*)\)", query) for word in words.split(",")}
            kept |= {word.strip() for words in re.findall(r"sum by \(([^)]*)\) \(rate", query) for word in words.split(",")} - {"le"}
            assert not set(re.findall(r"{{(\w+)}}", text)) - kept, panel.title


def test_every_label_value_that_a_query_asks_for_is_written_by_the_code() -> None:
    code = "".join(path.read_text() for package in generate.PACKAGES for path in (PROMETHEUS_FOLDER.parents[1] / package).rglob("*.py"))
    asked = {
        value
        for _, query in written_queries()
        for _, values in re.findall(r"\b(stage|outcome|state)=~?\"([^\"]+)\"", query)
        for value in values.split("|")
    }
    assert len(asked) >= 8
    assert not {value for value in asked if f'"{value}"' not in code}


def test_panels_do_not_overlap_and_fit_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        x, y, width, height = panel.place
        cells = {(x + right, y + down) for right in range(width) for down in range(height)}
        assert x + width <= 24 and not cells & taken, panel.title
        taken |= cells


def test_the_dashboard_reads_from_the_datasource_and_the_folder_that_are_provisioned() -> None:
    provisioning = OVERVIEW.parents[1] / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    dashboard = json.loads(OVERVIEW.read_text())
    uids = set(re.findall(r'"type": "prometheus",\s*"uid": "([^"]+)"', OVERVIEW.read_text()))
    assert uids == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    [provider] = yaml.safe_load((provisioning / "dashboards" / "headwater.yml").read_text())["providers"]
    compose = yaml.safe_load((OVERVIEW.parents[3] / "docker-compose.yml").read_text())
    mounts = dict(mount.split(":")[:2] for mount in compose["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert (
        compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{provider['options']['path']}/{OVERVIEW.name}"
    )


def test_values_are_shown_with_their_units_and_nothing_as_nothing() -> None:
    from deploy.grafana.picture import shown  # matplotlib: half a second of every worker that only looks for its tests

    assert [shown(value, unit) for value, unit in ((0.0182, "s"), (75.0, "s"), (1536, "bytes"), (0.5, "percentunit"), (float("nan"), "s"))] == [
        "18.2 ms", "75 s", "1.5 KiB", "50 %", "no data",
    ]  # fmt: skip
    assert legend("{{op}} {{outcome}}", {"op": "put"}) == "put "


def test_every_alert_has_a_line_that_says_what_to_do() -> None:
    page = (PROMETHEUS_FOLDER.parents[1] / "docs" / "operations.md").read_text()
    for group in yaml.safe_load((PROMETHEUS_FOLDER / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` |" in page, rule["alert"]
            assert rule["annotations"]["page"] == "docs/operations.md#alerts"


@needs_prometheus
def test_promtool_accepts_configuration_and_rules_and_every_alert_fires_where_it_should() -> None:
    for command in (("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")):
        done = promtool(*command)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
    tested = {alert["alertname"] for test in yaml.safe_load((PROMETHEUS_FOLDER / "rules_test.yml").read_text())["tests"]
              for alert in test["alert_rule_test"] if alert.get("exp_alerts")}  # fmt: skip
    assert tested == {rule["alert"] for group in yaml.safe_load((PROMETHEUS_FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]}


@needs_prometheus
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_panel_shows_data_of_a_live_deployment_and_the_scrape_is_clean(tmp_path: Path) -> None:
    with live_stream(tmp_path) as (prometheus_url, metrics_url):
        empty = {panel.title for panel in PANELS}
        deadline = time.monotonic() + FILL_SECONDS
        while empty and time.monotonic() < deadline:
            time.sleep(1.0)
            empty = {panel.title for panel in PANELS if panel.title in empty and not has_data(prometheus_url, panel.targets)}
        assert not empty, "panels without data"
        with urllib.request.urlopen(metrics_url, timeout=10) as answer:
            checked = promtool("check", "metrics", given=answer.read())
        assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()
        firing = {series.labels["alertname"] for series in query_now(prometheus_url, 'ALERTS{alertstate="firing"}')}
        assert not firing - NO_ALERT_ON_A_GOOD_DAY
        from deploy.grafana.picture import draw

        draw(prometheus_url, 1.0, RATE_SECONDS).savefig(tmp_path / "overview.png")
        assert (tmp_path / "overview.png").stat().st_size > 50_000
        with pytest.raises(QueryError, match="parse error"):
            query_now(prometheus_url, "sum by (")
    assert not answers(f"{prometheus_url}/-/ready")


def has_data(url: str, targets: tuple[tuple[str, str], ...]) -> bool:
    """Whether every query of a panel gives a series with a number in it."""
    return all(any(series.values[0] == series.values[0] for series in query_now(url, filled_in(query, RATE_SECONDS))) for query, _ in targets)
