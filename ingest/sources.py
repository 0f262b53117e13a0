"""Sources: what the paths of `headwater ingest` name, opened and checked before anything is sent.

    folder                       pictures, texts, sidecars, captions.csv     `ingest.folder_source`
    .csv .jsonl .ndjson .parquet manifest, a row per item                    `ingest.manifest_source`
    .tar .tar.gz .tgz            WebDataset shards                           `ingest.tar_source`
    -                            JSONL on standard input                     `ingest.manifest_source`
    anything else                one picture, or one .txt

Takes: paths. Gives: sources, each of units. Owns: which file is what, by its name; the check that no two items share an id.
Never: reads what it ingests before it is asked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import NotFoundError, SettingsError
from ingest.captions import CaptionRow, read_captions
from ingest.folder_source import FileUnit, FolderSource, single_file
from ingest.input_item import InputRules, InputSource, InputUnit, RejectedInput
from ingest.manifest_source import JSONL, MANIFEST_SUFFIXES, STDIN, ManifestUnit
from ingest.tar_source import TarUnit

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(slots=True)
class FileSource:
    """A source of one unit: a manifest, a tar, a single file, or standard input.

    `path`'s unit is made anew for each walk, so that a changed file is seen as changed.
    """

    path: Path
    rules: InputRules
    root: Path | None = None
    row: CaptionRow | None = None

    @property
    def identity(self) -> str:
        """The file's own path with the folder that its rows are relative to; nothing for standard input, which cannot be read twice."""
        return "" if self.path == STDIN else f"{self.path.resolve()}|{'' if self.root is None else self.root.resolve()}"

    def unit(self) -> InputUnit:
        """The one unit.

        Raises
        ------
        SettingsError
            The file cannot be read.
        """
        if self.path == STDIN:
            return ManifestUnit(STDIN, JSONL, self.root or Path(), self.rules, name="-", batch_rows=1)  # a pipe may be slow: rows do not wait
        try:
            found = self.path.stat()
        except OSError as error:
            raise SettingsError(f"{self.path}: cannot be read: {error.strerror}", hint="check the path and its permissions") from None
        name, stamp, changed_at = self.path.name, f"{found.st_size}:{found.st_mtime_ns}", found.st_mtime
        if (kind := MANIFEST_SUFFIXES.get(self.path.suffix.lower())) is not None:
            return ManifestUnit(self.path, kind, self.root or self.path.parent, self.rules, name, stamp, found.st_size, changed_at)
        if self.path.name.lower().endswith(_TAR_SUFFIXES):
            return TarUnit(self.path, self.rules, name, stamp, found.st_size, changed_at)
        return single_file(self.path, self.rules, self.row)

    def units(self) -> Iterator[InputUnit | RejectedInput]:
        """The one unit, or why there is none now."""
        try:
            yield self.unit()
        except SettingsError as error:
            yield RejectedInput(str(self.path), "unreadable", error.message)

    def size_bytes(self) -> int:
        """Size of the file."""
        return self.unit().size_bytes

    def check(self) -> None:
        """Read what says that the file is what its name says; SettingsError where it is not."""
        unit = self.unit()
        if isinstance(unit, ManifestUnit | TarUnit) and self.path != STDIN:
            unit.check()


@dataclass(slots=True)
class OpenedSources:
    """Sources of one ingest. `captions` is the captions file that was named for all of them, with its rows."""

    sources: list[InputSource]
    captions: Path | None = None
    rows: dict[str, CaptionRow] | None = None

    @property
    def folders(self) -> list[FolderSource]:
        """Those that are folders."""
        return [source for source in self.sources if isinstance(source, FolderSource)]

    @property
    def other_files(self) -> int:
        """Files of the folders that are no media, in the walk that was made."""
        return sum(folder.other_files for folder in self.folders)

    def unused_captions(self) -> list[str]:
        """After the walk: files that a captions file names and that are not there, as lines for people."""
        if self.rows is not None:
            named = {name for folder in self.folders for name in folder.named} | {source.path.name for source in self.sources}
            return [f"{name}: named in {self.captions}, but there is no such file" for name in self.rows if name not in named]
        return [
            f"{name}: named in {folder.path / 'captions.csv'}, but there is no such file"
            for folder in self.folders
            for name in folder.rows
            if name not in folder.named
        ]


def open_sources(paths: Sequence[Path], rules: InputRules, captions: Path | None = None, root: Path | None = None) -> OpenedSources:
    """Open what the paths name.

    Parameters
    ----------
    paths : Sequence of Path
        Folders, manifests, tars, single files, ``-`` for standard input.
    rules : InputRules
        Of the collection.
    captions : Path, optional
        Captions file of all folders and single files; else each folder's own ``captions.csv``.
    root : Path, optional
        Folder that the paths in manifests are relative to; else the manifest's own.

    Raises
    ------
    NotFoundError
        A path does not exist.
    SettingsError
        A file is not what its name says, a captions file cannot be read, two paths are one, or two files would have one id.
    """
    rows = None if captions is None else read_captions(captions)
    sources: list[InputSource] = []
    identities: set[str] = set()
    for path in paths:
        if path != STDIN and not path.exists():
            raise NotFoundError(f"{path} does not exist", hint="name a folder or a file", code="path_not_found")
        source: FolderSource | FileSource
        source = FolderSource(path, rules, rows) if path.is_dir() else FileSource(path, rules, root, (rows or {}).get(path.name))
        source.check()
        if source.identity in identities:
            raise SettingsError(f"{path} is named twice", hint="name each path once")
        identities.add(source.identity)
        sources.append(source)
    _refuse_twins(sources)
    return OpenedSources(sources, captions, rows)


def _refuse_twins(sources: Sequence[InputSource]) -> None:
    """Two folders with a file of one name below them would overwrite each other's items."""
    if len(sources) < 2:
        return
    seen: dict[str, Path] = {}
    for source in sources:
        for unit in source.units():
            if not isinstance(unit, FileUnit):
                continue
            if unit.name in seen:
                raise SettingsError(
                    f"{seen[unit.name]} and {unit.path} would both have the id {unit.name!r}", hint="name the folder that holds both, or run twice"
                )
            seen[unit.name] = unit.path
