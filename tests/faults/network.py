"""Faults 22 and 23: the network between one worker and the log, or the store, is cut or slow, in one direction or both.

Takes: a trial. Gives: `VARIANTS`. Owns: which role's lines are spoilt; load, checker and query service have lines of their own.
Never: cuts a line for all: that is a server that is down (fault 21).
"""

from __future__ import annotations

import time
from functools import partial

from tests.faults.lines import log_line, store_line, supervised, through
from tests.faults.store_answers import claims
from tests.faults.tcp_proxy import Line, TcpProxy
from tests.faults.trial import Trial, Variant

SESSION_SECONDS = 15.0
"""After which the group gives the partitions of a silent member to others (`backends.kafka_settings`)."""
PATIENCE = 'tests.faults.parts:set_constant={"module": "backends.s3_answers", "name": "PUT_TIMEOUT_SECONDS", "value": 3.0}'


def started_on_lines(trial: Trial, *, log: bool, store: bool) -> list[TcpProxy]:
    """Embed worker and builder on lines that can be spoilt, and the stream flows."""
    log_proxy = log_line(trial) if log else None
    store_proxy = store_line(trial) if store else None
    for role in ("embed", "index"):
        trial.start(role, parts=[PATIENCE], **through(log=log_proxy, store=store_proxy))
    trial.wait_flowing()
    return [each for each in (log_proxy, store_proxy) if each is not None]


def silent(trial: Trial, *, to: str, ways: str, seconds: float) -> None:
    """INV-2, 4, 10: nothing comes through for longer than a session; then what was held is delivered, late, and counts once."""
    lines = started_on_lines(trial, log=to in ("log", "both"), store=to in ("store", "both"))
    with supervised(trial, most=4):
        for line in lines:
            line.up.is_silent, line.down.is_silent = "up" in ways, "down" in ways
        time.sleep(seconds)
        for line in lines:
            line.heal()
    trial.note(f"{seconds:g} s without a byte {ways} the line to the {to}; claims {claims(trial)}")


def cut_off(trial: Trial, *, to: str) -> None:
    """INV-2, 4, 10: connections are reset again and again and for a while refused; nobody waits for ever."""
    lines = started_on_lines(trial, log=to in ("log", "both"), store=to in ("store", "both"))
    resets = 0
    with supervised(trial, most=6):
        for _ in range(20):
            resets += sum(line.reset() for line in lines)
            time.sleep(0.3)
        for line in lines:
            line.refuse()
            line.reset()
        time.sleep(12)
        for line in lines:
            line.listen()
    trial.note(f"{resets} resets, then 12 s refused; claims {claims(trial)}")


def spoilt(trial: Trial, *, to: str, seconds: float, **how: float) -> None:
    """INV-10: slow is not gone: no partition moves to and fro for it, and what is behind is made up for afterwards."""
    lines = started_on_lines(trial, log=to in ("log", "both"), store=to in ("store", "both"))
    before = claims(trial)
    with supervised(trial, most=4):
        for line in lines:
            for way in (line.up, line.down):
                for name, value in how.items():
                    assert name in Line.__dataclass_fields__, name
                    setattr(way, name, int(value) if name == "slice_bytes" else value)
        time.sleep(seconds)
        during = claims(trial)
        for line in lines:
            line.heal()
    moved = sum(after - first for after, first in zip(during, before, strict=True))
    told = ", ".join(f"{name} {value:g}" for name, value in how.items())
    trial.note(f"{seconds:g} s of {told} on the line to {'log and store' if to == 'both' else to}; {moved} claims meanwhile")
    assert moved <= 2 * trial.record.partitions, f"{moved} claims in {seconds:g} s: partitions move to and fro"


def cut_after(trial: Trial, *, to: str) -> None:
    """INV-5, 10: every connection ends after 20 kB, in the middle of whatever it carries."""
    lines = started_on_lines(trial, log=to in ("log", "both"), store=to in ("store", "both"))
    with supervised(trial, most=6):
        for line in lines:
            line.down.cut_after_bytes = line.up.cut_after_bytes = 20_000
        time.sleep(15)
        accepted = sum(line.accepted for line in lines)
        for line in lines:
            line.heal()
            line.reset()
    trial.note(f"{accepted} connections")


VARIANTS = [
    *(
        Variant(22, f"the {to}, {told}", partial(silent, to=to, ways=ways, seconds=SESSION_SECONDS + 5), ())
        for to, told, ways in (
            ("log", "both ways", "up and down"),
            ("log", "answers only", "down"),
            ("log", "requests only", "up"),
            ("store", "answers only", "down"),
            ("store", "requests only", "up"),
        )
    ),
    Variant(22, "log and store, reset and refused", partial(cut_off, to="both"), ()),
    Variant(23, "5 s of latency, the log", partial(spoilt, to="log", seconds=20, delay_seconds=2.5), ()),
    Variant(23, "5 s of latency, the store", partial(spoilt, to="store", seconds=20, delay_seconds=2.5), ()),
    Variant(23, "1 kB/s", partial(spoilt, to="both", seconds=15, bytes_per_second=1000), ()),
    Variant(23, "slices of 50 bytes", partial(spoilt, to="both", seconds=12, slice_bytes=50, slice_pause_seconds=0.002), ()),
    Variant(23, "slow close", partial(spoilt, to="store", seconds=8, close_delay_seconds=3.0), ()),
    Variant(23, "cut after 20 kB", partial(cut_after, to="both"), ()),
]
