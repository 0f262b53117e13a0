"""Promises of the runtimes: the same vectors whichever runs, and nothing from the cache is believed unseen."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.errors import SettingsError
from contracts.settings import Settings
from embedding.converted import ENTRY, GRAPH, TRUE, converted
from embedding.network import GPU_BATCH_ITEMS, Network
from embedding.open_network import _timed, encoder_threads, open_network
from embedding.parity import MIN_COSINE, PROBES, centred_cosine, probe_pictures

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ["torch", "openvino", "onnx"]


def network(weights_sha256: str = "0" * 64) -> Network:
    from tests.embedding.small_network import Small

    return Network("small", weights_sha256, ("pictures",), ((0,),), (probe_pictures(8, 8),), Small)


def settings_for(runtime: str, cache_dir: Path) -> Settings:
    return Settings(embed_runtime=runtime, cache_dir=cache_dir, embed_threads=1, embed_device="cpu")  # type: ignore[arg-type]


def pictures(count: int) -> NDArray[np.uint8]:
    colours = np.random.default_rng(3).integers(0, 256, (count, 1, 1, 3))
    return (colours + np.arange(8)[:, None, None] * np.ones((8, 8, 1))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gives_torchs_vectors_at_every_batch_size(runtime: str, tmp_path: Path) -> None:
    import torch

    from tests.embedding.small_network import Small

    run = open_network(network(), settings_for(runtime, tmp_path))
    assert runtime in run.label
    for count in (1, 2, 7):
        assert np.abs(run(pictures(count)) - Small()(torch.from_numpy(pictures(count))).numpy()).max() < 2e-2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_result_is_not_overwritten_by_the_next_call(runtime: str, tmp_path: Path) -> None:
    run = open_network(network(), settings_for(runtime, tmp_path))
    first = run(pictures(2))
    kept = first.copy()
    run(255 - pictures(2))
    assert np.array_equal(first, kept)


def test_auto_takes_openvino_where_it_is_installed(tmp_path: Path) -> None:
    assert open_network(network(), settings_for("auto", tmp_path)).label.startswith("openvino")


def test_a_network_is_converted_once_and_another_weights_file_is_another_network(tmp_path: Path) -> None:
    import torch

    from tests.embedding.small_network import Small

    made = []

    def make() -> torch.nn.Module:
        made.append(1)
        return Small()

    one = Network("small", "1" * 64, ("pictures",), ((0,),), (probe_pictures(8, 8),), make)
    for runtime in ("openvino", "onnx", "openvino"):
        open_network(one, settings_for(runtime, tmp_path))
    assert len(made) == 1
    converted(network("2" * 64), tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 2


@pytest.mark.parametrize("name", [GRAPH, TRUE, ENTRY])
def test_a_damaged_copy_is_noticed_before_it_is_parsed_and_made_anew(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = converted(network(), tmp_path)
    path = tmp_path / "models" / network().folder_name / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with caplog.at_level(logging.WARNING):
        again = converted(network(), tmp_path)
    assert "made anew" in caplog.text
    assert np.array_equal(again.true, good.true)
    json.loads((tmp_path / "models" / network().folder_name / ENTRY).read_bytes())


def test_a_copy_that_came_with_an_image_is_taken_first_never_written_to_and_damaged_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    came_with, cache = tmp_path / "came" / "models", tmp_path / "cache"
    good = converted(network(), tmp_path / "came")
    assert np.array_equal(converted(network(), cache, came_with).true, good.true)
    assert not cache.exists()
    graph = came_with / network().folder_name / GRAPH
    graph.write_bytes(graph.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(converted(network(), cache, came_with).true, good.true)
    assert str(came_with) in caplog.text
    assert (cache / "models").is_dir() and len(graph.read_bytes()) == len(good.graph) - 1


def test_a_runtime_that_gives_other_vectors_is_not_used_and_by_how_much_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The cache holds a whole, well-hashed copy of another network under this one's name: only the vectors can tell."""

    import torch

    from tests.embedding.small_network import Small

    class Other(Small):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return super().forward(255 - pictures) ** 2

    other = Network("small", "0" * 64, ("pictures",), ((0,),), (probe_pictures(8, 8),), Other)
    converted(network(), tmp_path / "true")
    converted(other, tmp_path / "other")
    folder, wrong = (tmp_path / place / "models" / network().folder_name for place in ("true", "other"))
    (folder / GRAPH).write_bytes((wrong / GRAPH).read_bytes())
    entry = json.loads((folder / ENTRY).read_bytes())
    entry["sha256"][GRAPH] = json.loads((wrong / ENTRY).read_bytes())["sha256"][GRAPH]
    (folder / ENTRY).write_text(json.dumps(entry))
    with caplog.at_level(logging.WARNING):
        run = open_network(network(), settings_for("openvino", tmp_path / "true"))
    assert run.label.startswith("torch")
    assert "centred cosine" in caplog.text and "at least 0.99" in caplog.text
    assert centred_cosine(Small()(torch.from_numpy(pictures(7))).numpy(), run(pictures(7))) > MIN_COSINE


def test_a_cache_that_cannot_be_written_costs_speed_not_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        run = open_network(network(), settings_for("auto", tmp_path / "file"))
    assert run.label.startswith("torch")
    assert "HEADWATER_CACHE_DIR" in caplog.text


def test_a_converted_network_runs_where_torch_is_not_installed(tmp_path: Path) -> None:
    converted(network(), tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from contracts.settings import Settings\n"
        "from embedding.network import Network\n"
        "from embedding.open_network import encoder_threads, open_network\n"
        "from embedding.parity import probe_pictures\n"
        "one = Network('small', '0' * 64, ('pictures',), ((0,),), (probe_pictures(8, 8),), None)\n"
        f"run = open_network(one, Settings(cache_dir=Path({str(tmp_path)!r})))\n"
        "print(run.label, run(probe_pictures(8, 8)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino") and "(8, 6)" in done.stdout


def test_a_runtime_or_gpu_that_is_asked_for_and_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingsError, match=r"openvino is not installed \(pip install 'headwater\[openvino\]'\)"):
        open_network(network(), settings_for("openvino", tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="no such GPU"):
            open_network(network(), Settings(embed_device="cuda", cache_dir=tmp_path))


@pytest.mark.parametrize(("most_items", "timed_items"), [(GPU_BATCH_ITEMS, GPU_BATCH_ITEMS), (GPU_BATCH_ITEMS - 1, PROBES)])
def test_a_gpu_is_timed_on_a_full_batch_where_its_memory_holds_one(most_items: int, timed_items: int) -> None:
    class Gpu:
        label, on_gpu = "a GPU", True

        def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            if len(inputs[0]) > most_items:
                raise MemoryError
            return np.zeros((len(inputs[0]), 6), np.float32)

    (inputs,), seconds = _timed(Gpu(), network())
    assert inputs.shape == (timed_items, 8, 8, 3) and seconds >= 0
    assert np.array_equal(inputs[:PROBES], probe_pictures(8, 8))


def test_the_centred_cosine_sees_what_the_plain_one_does_not() -> None:
    random = np.random.default_rng(5)
    true = (10 + random.normal(0, 0.01, (8, 32))).astype(np.float32)
    other = (10 + random.normal(0, 0.01, (8, 32))).astype(np.float32)
    plain = (true * other).sum(1) / np.linalg.norm(true, axis=1) / np.linalg.norm(other, axis=1)
    assert plain.min() > 0.9999
    assert centred_cosine(true, other) < 0.9
    assert centred_cosine(true, true) == pytest.approx(1.0)
    assert centred_cosine(true, np.full_like(true, np.nan)) == -1.0
    assert centred_cosine(true, true[:4]) == -1.0


@pytest.mark.parametrize(("asked", "waits_asleep", "threads"), [(0, True, 4), (0, False, 2), (3, True, 3), (3, False, 3)])
def test_only_threads_that_sleep_while_they_wait_get_every_core(
    monkeypatch: pytest.MonkeyPatch, asked: int, waits_asleep: bool, threads: int
) -> None:
    monkeypatch.setattr("embedding.open_network.os.cpu_count", lambda: 4)
    assert encoder_threads(Settings(embed_threads=asked), waits_asleep) == threads
