"""Paths into undeclared attributes, and what a row's JSON holds at one.

    colour          a.b            tags[]          boxes[].label          boxes[0].label          "a.b"

Takes: the key of a condition, parsed JSON. Gives: steps, found values. Owns: the syntax of a path (Qdrant's). Never: fails on a value's shape.
"""

from __future__ import annotations

import re
from typing import Any

from query.filter_tree import Step

MAX_STEPS = 16
_NAME = re.compile(r'"([^"]+)"|([^."\[\]]+)')
_BRACKETS = re.compile(r"\[([0-9]{0,6})\]")


def parse_path(text: str) -> tuple[Step, ...]:
    """Read a path; ValueError says what is wrong with it."""
    steps: list[Step] = []
    at = 0
    while True:
        name = _NAME.match(text, at)
        if name is None:
            raise ValueError("not a path: names joined by dots, each with [] or [NUMBER] behind it; a name with a dot stands in double quotes")
        steps.append(name[1] or name[2])
        at = name.end()
        while (bracket := _BRACKETS.match(text, at)) is not None:
            steps.append(int(bracket[1]) if bracket[1] else None)
            at = bracket.end()
        if len(steps) > MAX_STEPS:
            raise ValueError(f"a path of more than {MAX_STEPS} steps")
        if at == len(text):
            return tuple(steps)
        if text[at] != ".":
            raise ValueError(f"not a path at character {at}")
        at += 1


def find(value: Any, path: tuple[Step, ...]) -> list[Any]:
    """What lies at a path, nulls included: nothing where it leads nowhere, several values where it goes through ``[]``."""
    found = [value]
    for step in path:
        found = [child for box in found for child in _children(box, step)]
    return found


def _children(box: Any, step: Step) -> list[Any]:
    if isinstance(step, str):
        return [box[step]] if isinstance(box, dict) and step in box else []
    if not isinstance(box, list):
        return []
    return box if step is None else box[step : step + 1]
