"""Reads a Dockerfile into stages and instructions, and runs those of a stage that need no engine, in a scratch folder instead of ``/``.

Takes: the text, a build context with its `.dockerignore`. Gives: `Stage`s; files under the scratch folder. Owns: which steps cannot be run so.
Never: is a container: users, groups, and the base image's own files are not there (`SKIPPED`).
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED = ("groupadd", "addgroup")
"""A RUN that makes users needs root and a system of its own."""
KEPT = ("HOME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ABSOLUTE = re.compile(r"(?<![\w./:])/(?=(?:opt|src|var/lib/headwater)\b)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word in capitals, and the rest of its line with continuations joined."""

    word: str
    rest: str


@dataclass
class Stage:
    """One stage: what it is built on, and what follows."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [instruction.rest for instruction in self.instructions if instruction.word == word]


def read_stages(path: Path) -> dict[str, Stage]:
    """Stages by name, in order; the last one has no name in some files and is then called ``final``."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name or "final"] = Stage(name or "final", base)
        elif word:
            assert current is not None, line
            current.instructions.append(Instruction(word, rest.strip()))
    return stages


def chain(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage after those that it is built on, the first one last named in a FROM of an image."""
    stage = stages[name]
    return [*chain(stages, stage.base), stage] if stage.base in stages else [stage]


def environment(stages: dict[str, Stage], name: str) -> dict[str, str]:
    """Variables that ENV sets in a stage and those below it."""
    found: dict[str, str] = {}
    for stage in chain(stages, name):
        for rest in stage.all("ENV"):
            found |= dict(re.findall(r"(\w+)=(\S*)", rest))
    return found


def is_in_context(path: str, ignore: str) -> bool:
    """Whether `.dockerignore` lets a path into the build; the last pattern that fits decides."""
    kept = True
    for line in (line.strip() for line in ignore.splitlines()):
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            names = path.split("/") if line.startswith("**/") else ["/".join(path.split("/")[: end + 1]) for end in range(path.count("/") + 1)]
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                kept = line.startswith("!")
    return kept


class Build:
    """Runs stages: each has a folder of its own that stands for ``/``."""

    def __init__(self, stages: dict[str, Stage], context: Path, scratch: Path, python: str) -> None:
        self.stages, self.context, self.scratch, self.python = stages, context, scratch, python
        self.ignore = (context / ".dockerignore").read_text()
        self.skipped: list[str] = []

    def root(self, name: str) -> Path:
        return self.scratch / name

    def run(self, name: str) -> Path:
        """Do what a stage and those below it say; gives the folder that stands for ``/``."""
        root, place = self.root(name), self.root(name)
        root.mkdir()
        for stage in chain(self.stages, name):
            for instruction in stage.instructions:
                if instruction.word == "WORKDIR":
                    place = root / instruction.rest.lstrip("/")
                    place.mkdir(parents=True, exist_ok=True)
                elif instruction.word == "COPY":
                    self._copy(instruction.rest.split(), root, place)
                elif instruction.word == "RUN":
                    self._shell(instruction.rest, root, place, name)
        return root

    def _copy(self, words: list[str], root: Path, place: Path) -> None:
        source_root = self.context
        if words[0].startswith("--from="):
            source_root = self.root(words.pop(0).removeprefix("--from="))
        *sources, target = words
        for source in sources:
            came_from = source_root / source.lstrip("/")
            goes_to = (root / target.lstrip("/")) if target.startswith("/") else place / target
            if len(sources) > 1 or target.endswith("/"):
                goes_to = goes_to / came_from.name
            goes_to.parent.mkdir(parents=True, exist_ok=True)
            if source_root == self.context:
                assert is_in_context(source, self.ignore), f".dockerignore leaves out {source}"
            if came_from.is_dir():
                shutil.copytree(came_from, goes_to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy2(came_from, goes_to)

    def _shell(self, line: str, root: Path, place: Path, name: str) -> None:
        if line.startswith(SKIPPED):
            self.skipped.append(line)
            return
        line = re.sub(r"(?<![\w/.-])python(?= )", self.python, ABSOLUTE.sub(f"{root}/", line))
        ours = dict(os.environ)  # noqa: TID251 - the tools that a builder has, and how pip reaches its index
        kept = {key: value for key, value in ours.items() if key.startswith("PIP_") or key in KEPT}
        variables = kept | environment(self.stages, name) | {"PATH": ours["PATH"]}
        done = subprocess.run(["sh", "-ec", line], cwd=place, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
