"""The object store of the simulation: a memory store whose answers are lost, come late, or say 409, 412 and 5xx as real ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from backends.memory_store import MemoryStore
from contracts.errors import UnavailableError
from contracts.store import ObjectInfo, PutOutcome, StoredObject
from tests.simulation.cooperative import SimulatedClock
from tests.simulation.faults import Faults


def kind_of(key: str) -> str:
    """What a key holds, for the names of steps: manifest, boundary, claim, or a part's name without its field."""
    if "/manifest/" in key:
        return "manifest"
    if "/gc/" in key or "/pins/" in key:
        return key.rsplit("/", 2)[1]
    name = key.rsplit("/", 1)[-1].partition(".")[2] or "record"
    return "field" if name.startswith("field") else name


class FaultyStore(MemoryStore):
    """`contracts.store.ObjectStore`; `on_create` and `on_delete` are told what happened to the stored objects, whatever was answered."""

    def __init__(self, clock: SimulatedClock, faults: Faults) -> None:
        super().__init__(clock)
        self.faults = faults
        self.on_create: Callable[[str, bytes], None] = lambda key, data: None
        self.on_delete: Callable[[str], None] = lambda key: None

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Stored and told; stored, not stored, or stored much later, and not told; 409; 412 of a retry that meets itself."""
        self.faults.step(f"put {kind_of(key)}")
        draw = self.faults.draw()
        if draw > 0.25:
            outcome = self._create(key, data)
        elif draw > 0.15:
            self._create(key, data)
            outcome = PutOutcome.UNKNOWN
        elif draw > 0.12:
            self._create(key, data)
            outcome = PutOutcome.EXISTS  # sent again by some middle, and it met itself
        elif draw > 0.08:
            self.faults.later("late put", lambda: self._create(key, data))
            outcome = PutOutcome.UNKNOWN
        else:
            outcome = PutOutcome.CONFLICT if draw > 0.05 else PutOutcome.UNKNOWN
        self.faults.step(f"put {kind_of(key)}, answered")
        return outcome

    def _create(self, key: str, data: bytes) -> PutOutcome:
        outcome = super().put_if_absent(key, data)
        if outcome is PutOutcome.CREATED:
            self.on_create(key, data)
        return outcome

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        self.faults.step(f"swap {kind_of(key)}")
        draw = self.faults.draw()
        if draw < 0.06:
            swap = super().compare_and_swap
            self.faults.later("late swap", lambda: swap(key, data, etag))
            outcome = PutOutcome.UNKNOWN
        elif draw < 0.12:
            outcome = PutOutcome.CONFLICT if draw < 0.09 else PutOutcome.UNKNOWN
        else:
            outcome = super().compare_and_swap(key, data, etag)
            outcome = PutOutcome.UNKNOWN if draw < 0.2 and outcome is PutOutcome.CREATED else outcome
        self.faults.step(f"swap {kind_of(key)}, answered")
        return outcome

    def get(self, key: str) -> StoredObject | None:
        self._ask("get", key)
        return super().get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        self._ask("get", key)
        return super().get_range(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        self._ask("head", key)
        return super().head(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self._ask("list", prefix)
        return super().list(prefix, start_after)

    def delete(self, key: str) -> None:
        self._ask("delete", key)
        super().delete(key)
        self.on_delete(key)

    def _ask(self, what: str, key: str) -> None:
        self.faults.step(f"{what} {kind_of(key)}")
        if self.faults.draw() < 0.01:
            raise UnavailableError(f"503 for {what} {key}")
