"""Promises of `headwater train map`: honest figures on held-out pictures, a map that a new collection can use, clear refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from contracts.errors import SettingsError
from contracts.settings import load_settings
from embedding.open_encoder import describe_space, full_encoder_name, open_encoder
from tests.headwater.conftest import Headwater

MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"


def sample_folder(folder: Path, count: int) -> list[str]:
    """A folder with every n-th sample picture and their captions; gives the files' names."""
    with (MEDIA / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = rows[:: len(rows) // count][:count]
    for row in chosen:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MEDIA / row["file"], folder / row["file"])
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "caption"), *((row["file"], row["caption"]) for row in chosen)])
    return [row["file"] for row in chosen]


def test_too_few_pictures_are_refused_before_any_model_is_loaded(headwater: Headwater, workplace: Path) -> None:
    (workplace / "few").mkdir()
    sample_folder(workplace / "few", 20)
    ended = headwater("train", "map", "few", "--out", "few.map")
    assert ended.code == 2 and "20 pictures with captions were found, too few" in ended.err and not Path("few.map").exists()


def test_a_map_is_never_written_over_another_file(headwater: Headwater, workplace: Path) -> None:
    (workplace / "old.map").write_bytes(b"old")
    ended = headwater("train", "map", str(MEDIA), "--out", "old.map")
    assert ended.code == 2 and "old.map exists" in ended.err and (workplace / "old.map").read_bytes() == b"old"


@pytest.mark.parametrize("arguments", [[], ["folder", "--collection", "c"]])
def test_folders_or_a_collection_are_named_not_both_and_not_neither(headwater: Headwater, arguments: list[str]) -> None:
    ended = headwater("train", "map", *arguments, "--out", "x.map")
    assert ended.code == 2 and "either folders or --collection" in ended.err


@pytest.mark.model
@pytest.mark.slow
def test_a_map_trained_on_half_of_the_samples_finds_more_in_the_other_half(headwater: Headwater, workplace: Path) -> None:
    ended = headwater("train", "map", str(MEDIA), "--out", "samples.map", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    halves = told["recall_at_10"]["halves"]
    assert told["pictures"] == 324 and told["repeated"] == 1 and halves["pool"] == 162
    assert halves["before"]["mean"] > 0.33 and halves["after"]["mean"] > halves["before"]["mean"] + 0.04 and halves["gain"]["low"] > 0
    assert load_file(workplace / "samples.map")["weights"].shape == (1000, 384)


@pytest.mark.model
@pytest.mark.slow
def test_a_map_of_a_collections_log_makes_a_space_that_only_new_collections_have(headwater: Headwater, workplace: Path) -> None:
    (workplace / "pictures").mkdir()
    names = sample_folder(workplace / "pictures", 130)
    headwater("collection", "create", "photos", "--partitions", "2")
    assert headwater("ingest", "pictures", "--collection", "photos").code == 0
    (workplace / "pictures" / names[0]).unlink()
    ended = headwater("train", "map", "--collection", "photos", "--out", "photos.map", "--most", "110", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["pictures"] + told["repeated"] == 110  # a choice of those in the log
    made = headwater("collection", "create", "mapped", "--encoder", "lite+map:photos.map", "--json")
    fields = json.loads(made.out)["indexes"][0]["fields"]
    assert {field["encoder"] for field in fields} == {f"lite+map:photos.map#sha256={told['sha256']}"}
    before = json.loads(headwater("collection", "describe", "photos", "--json").out)["collection"]["indexes"][0]["fields"]
    assert {field["space_id"] for field in fields}.isdisjoint({field["space_id"] for field in before})
    _check_encoder(workplace, told["sha256"], MEDIA / names[1])


def _check_encoder(workplace: Path, sha256: str, picture: Path) -> None:
    settings = load_settings(model_dir=workplace / "models")
    full = full_encoder_name("lite+map:photos.map", settings, with_pictures=True)
    lite, mapped = open_encoder("lite", settings), open_encoder(full, settings)
    pixels = mapped.prepare_picture(picture.read_bytes())[None]
    vectors = mapped.encode_pictures(pixels)
    assert vectors.shape == (1, 384) and vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert 0.2 < float((vectors * lite.encode_pictures(pixels)).sum()) < 0.999
    assert np.array_equal(mapped.encode_texts(["a dog"]), lite.encode_texts(["a dog"]))
    (workplace / "models").mkdir()
    (workplace / "photos.map").rename(workplace / "models" / "photos.map")  # another machine keeps it in its model_dir
    assert describe_space(full, settings) == mapped.space
    (workplace / "photos.map").write_bytes(b"another file of the same name")
    with pytest.raises(SettingsError, match="another file") as caught:
        describe_space(full, settings)
    assert caught.value.error_code == "space_mismatch"
