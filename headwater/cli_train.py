"""`headwater train ...`: `map`, which moves `lite`'s pictures to where captions like theirs are.

Takes: captioned pictures. Gives: a map file, and what it is worth on pictures that it was not trained on. Owns: what is shown of that.
Never: changes a collection: a map makes a new space, for new collections.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from backends.catalog.collections import CollectionCatalog
from contracts.errors import SettingsError
from contracts.settings import Settings, load_settings
from headwater.console import notes, output, print_json, progress_bar
from headwater.logging_setup import set_up_logging
from headwater.wiring import open_engines

if TYPE_CHECKING:
    from embedding.lite import LiteEncoder
    from embedding.ridge_map import CaptionedPictures, Estimate, HeldOut, RidgeMap
    from headwater.map_pictures import Gathered

train_app = typer.Typer(help="Train what improves search on your own media.", no_args_is_help=True)
MIN_PICTURES = 100
"""Fewer leave 50 in a half, where an interval is as wide as the gain."""
_PROTOCOLS = {"halves": "trained on half, tested on the other half (5 x 2)", "folds": "trained on all folds but one, tested on it"}


@train_app.callback()
def train() -> None:
    """Train what improves search on your own media."""


@train_app.command("map")
def train_map(
    out: Annotated[Path, typer.Option(help="File to write the map to; it must not exist.")],
    paths: Annotated[list[Path] | None, typer.Argument(help="Folders with a captions.csv, manifests, tars: what ingest reads.")] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Train on this collection's media log instead.")] = None,
    captions: Annotated[Path | None, typer.Option(help="CSV with the columns file and caption; else each folder's captions.csv.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds of the second test.")] = 5,
    most: Annotated[
        int, typer.Option(min=MIN_PICTURES, max=100_000, help="Most pictures to train on; a random choice where there are more.")
    ] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a map for `lite` on captioned pictures, and test it on pictures that it was not trained on."""
    settings = load_settings()
    set_up_logging(settings)
    if bool(paths) == (collection is not None):
        raise SettingsError("name either folders or --collection", hint="headwater train map FOLDER --out FILE")
    if out.exists() or not out.absolute().parent.is_dir():
        raise SettingsError(f"{out} exists, or its folder does not", hint="name a new file: collections may be using the old one")
    try:
        from embedding.ridge_map import evaluate, evaluation_steps
        from embedding.ridge_map import train as fit
    except ModuleNotFoundError as error:
        raise SettingsError(f"training needs the package {error.name}", hint="pip install 'headwater[indexer]'") from error
    lite, found = _gather(settings, paths or [], collection, captions, most)
    pictures = found.pictures()
    if len(pictures) < MIN_PICTURES:
        raise SettingsError(f"{len(pictures)} different pictures with captions were found, too few", hint=f"bring at least {MIN_PICTURES}")
    with progress_bar() as bar:
        task = bar.add_task("training and testing", total=evaluation_steps(folds) + 1, note="")
        tests = evaluate(pictures, folds, lambda: bar.advance(task))
        made = fit(pictures)
        bar.advance(task)
    sha256 = _write(out, lite, made, pictures, tests, collection or ", ".join(path.name for path in paths or []))
    _show(out, sha256, made, tests, found, as_json)


def _gather(settings: Settings, paths: Sequence[Path], collection: str | None, captions: Path | None, most: int) -> tuple[LiteEncoder, Gathered]:
    from embedding.lite import LiteEncoder
    from headwater.map_pictures import captioned_files, captioned_items, first_captioned, gather

    def run(total: int, source: Any) -> tuple[LiteEncoder, Gathered]:
        first = first_captioned(source, MIN_PICTURES)
        if (count := sum(item.picture is not None for item in first)) < MIN_PICTURES:  # told before the model is loaded
            raise SettingsError(f"{count} pictures with captions were found, too few to train on", hint=f"bring at least {MIN_PICTURES}")
        lite = LiteEncoder(settings)
        with progress_bar() as bar:
            task = bar.add_task("embedding", total=total, note="")
            return lite, gather(chain(first, source), lite, settings, most, lambda count: bar.advance(task, count))

    if collection is None:
        return run(*captioned_files(paths, captions, settings))
    with open_engines(settings) as engines:
        return run(*captioned_items(engines, CollectionCatalog(engines.store).get(collection)))


def _write(out: Path, lite: LiteEncoder, made: RidgeMap, pictures: CaptionedPictures, tests: Sequence[HeldOut], source: str) -> str:
    """Write the file whole or not at all; gives its hex sha256."""
    from embedding.map_file import map_bytes

    facts = {"pictures": str(len(pictures)), "trained_at": datetime.now(UTC).isoformat(timespec="seconds"), "source": source[:200]}
    for test in tests:
        facts[f"recall_at_10_{test.protocol}"] = f"{test.before.mean:.3f} -> {test.after.mean:.3f} ({test.after.low:.3f} to {test.after.high:.3f})"
    data = map_bytes(made, lite.space.space_id, facts)
    handle, temporary = tempfile.mkstemp(dir=out.absolute().parent, prefix=".map-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.link(temporary, out)  # fails where somebody made the file meanwhile
    except FileExistsError:
        raise SettingsError(f"{out} exists", hint="name a new file: collections may be using the old one") from None
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}", hint="name a folder with room that you may write to") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def _show(out: Path, sha256: str, made: RidgeMap, tests: Sequence[HeldOut], found: Gathered, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "file": str(out),
                "sha256": sha256,
                "encoder": f"lite+map:{out}",
                "pictures": tests[0].pictures,
                "undecoded": found.undecoded,
                "repeated": found.repeated,
                "prior": made.prior,
                "strength": made.strength,
                "recall_at_10": {test.protocol: asdict(test) for test in tests},
            }
        )
        return
    table = Table("recall@10, caption to its own picture", "among", "chance", "before", "after", "gain")
    for test in tests:
        chance = min(1.0, 10 / test.pool)
        table.add_row(_PROTOCOLS[test.protocol], f"{test.pool:.0f}", f"{chance:.2f}", *map(_estimate, (test.before, test.after, test.gain)))
    output().print(table)
    output().print(f"{tests[0].pictures} pictures; in brackets 95 % intervals. Map: {out}, sha256 {sha256}", soft_wrap=True)
    output().print(f"use it: headwater collection create NAME --encoder lite+map:{out}", soft_wrap=True, markup=False)
    if found.undecoded or found.repeated:
        notes().print(f"left out: {found.undecoded} pictures that cannot be decoded, {found.repeated} that were there before", soft_wrap=True)
    if tests[0].gain.low <= 0:
        notes().print("warning: no gain is shown; `lite` alone serves these pictures as well", soft_wrap=True)


def _estimate(value: Estimate) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
