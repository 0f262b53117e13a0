"""One step of a chain of manifests, judged (pure): what may never change, and what may never go back.

Takes: two neighbouring versions. Gives: findings. Owns: what a step may do. Never: reads anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contracts.manifest import ChainedModel
from indexer.verify.findings import Finding

_CONSTANT = ("incarnation", "index", "partition", "cluster_id", "media_topic_id", "vectors_topic_id", "origin_offset")


@dataclass(frozen=True, slots=True)
class Link:
    """What one version's bytes are, and what it says that those of the version before are; None where it names none."""

    key: str
    version: int
    sha256: str
    names: tuple[int, str] | None


def broken_links(links: Sequence[Link | None]) -> Iterator[tuple[str, str]]:
    """Versions whose bytes are not those that the next one names, as (key, what).

    Parameters
    ----------
    links : sequence of Link or None
        Neighbouring versions in order; None for one that could not be read.
    """
    broken = [
        before is not None and after is not None and after.names != (before.version, before.sha256)
        for before, after in zip(links, links[1:], strict=False)
    ]
    for at, is_broken in enumerate(broken):
        before, after = links[at], links[at + 1]
        if not is_broken or before is None or after is None:
            continue
        if at + 1 < len(broken) and broken[at + 1] and not (at and broken[at - 1]):
            continue  # both links of the version after this one are broken: it is told by the next turn
        either = f", or version {after.version} was replaced itself" if at + 1 == len(broken) else ""
        yield before.key, f"version {after.version} names other bytes as version {before.version}: it was replaced{either}"


def check_step(before: ChainedModel, after: ChainedModel, key: str, index: str | None) -> Iterator[Finding]:
    """What is wrong with a version that follows another one; `key` is the later one's."""
    problems = []
    for name in _CONSTANT:
        if getattr(before, name, None) != getattr(after, name, None):
            problems.append(f"{name} changed from {getattr(before, name, None)} to {getattr(after, name, None)}")
    for part in ("checkpoint", "epochs"):
        old, new = getattr(before, part).model_dump(), getattr(after, part).model_dump()
        problems += [f"{part}.{name} went back from {old[name]} to {new[name]}" for name in old if new[name] < old[name]]
    for problem in problems:
        what = f"version {after.version} after {before.version}: {problem}"
        yield Finding("manifest_out_of_order", what, index=index, partition=after.partition, object=key)
