"""Engines: the components that every role is given when it starts.

Takes: components made by `headwater.wiring`. Gives: one value to pass. Owns: nothing. Never: is global, or read from a module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contracts.clock import Clock, SystemClock
from contracts.log import Log
from contracts.metrics import Metrics
from contracts.settings import Settings
from contracts.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Engines:
    """Log, store, settings, metrics and clock of one process."""

    settings: Settings
    log: Log
    store: ObjectStore
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=SystemClock)
