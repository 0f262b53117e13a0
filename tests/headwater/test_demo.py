"""Promises of the demo: it passes its own check on the sample media, starts anew each time, and its verdict is what was measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.collections import CollectionCatalog
from contracts.errors import SettingsError
from headwater.client import Hit
from headwater.demo import COLLECTION, _fresh_collection, _settings, run_demo, sample_folder
from headwater.demo_queries import DEMO_QUERIES
from headwater.demo_report import Quality, precision
from headwater.wiring import open_engines, vector_field

ROOT = Path(__file__).parents[2]


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_passes_its_check_and_leaves_nothing_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-c", "from headwater.cli import main; main(['demo', '--check'])"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "325 pictures" in done.stdout
    assert "check passed" in done.stdout
    measured = re.search(r"fused ([\d.]+) .*image ([\d.]+) .*image: ([\d.]+)", done.stdout)
    assert measured is not None
    assert Quality(*(float(value) for value in measured.groups())).failures() == []
    assert list(tmp_path.iterdir()) == []


def test_the_verdict_fails_on_each_figure_below_its_threshold() -> None:
    assert Quality(0.8, 0.5, 0.28).failures() == []
    assert [line.split(" is ")[0] for line in Quality(0.79, 0.49, 0.27).failures()] == [
        "precision@5 fused",
        "precision@5 image",
        "caption -> own picture recall@10 image",
    ]
    assert len(Quality(float("nan"), 0.9, 0.9).failures()) == 1


def test_precision_counts_a_missing_hit_as_wrong() -> None:
    hits = [Hit("a", 1.0, {"category": "food"}), Hit("b", 0.9, {"category": "tools"}), Hit("c", 0.8, {})]
    assert precision(hits, "food") == 0.2
    assert precision([], "food") == 0.0
    assert precision([Hit("a", 1.0, {"category": "food"})] * 6, "food") == 1.0


def test_the_queries_expect_categories_that_the_samples_have() -> None:
    assert len(DEMO_QUERIES) == 12
    assert {category for _, category in DEMO_QUERIES} <= {path.name for path in sample_folder().iterdir() if path.is_dir()}


@pytest.mark.model
def test_each_demo_starts_with_a_new_collection_and_removes_the_objects_of_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_LOG_URL", "kafka://192.0.2.1:9092")  # the demo must not touch what the environment names
    settings = _settings(tmp_path / "demo", 0)
    assert settings.log_url == f"sqlite:///{tmp_path}/demo/log.sqlite"
    with open_engines(settings) as engines:
        first = _fresh_collection(engines)
        create_collection(engines, CollectionRequest("other", [vector_field("v:2")]))
        second = _fresh_collection(engines)
        assert first.incarnation != second.incarnation
        assert CollectionCatalog(engines.store).get(COLLECTION).incarnation == second.incarnation
        assert not [info.key for info in engines.store.list("") if first.incarnation in info.key]
        assert CollectionCatalog(engines.store).find("other") is not None


def test_a_check_of_ones_own_folder_and_a_folder_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="sample media only"):
        run_demo(tmp_path, check=True, port=None)
    with pytest.raises(SettingsError, match="holds no pictures"):
        run_demo(tmp_path, check=False, port=None)
