"""The part of Prometheus' HTTP API that reads: a query now, or over a span.

Takes: an address, PromQL. Gives: series of labels, times and values. Owns: the wire. Never: writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

ANSWER_SECONDS = 30.0


class QueryError(Exception):
    """Prometheus refused a query; the message is its own."""


@dataclass(frozen=True, slots=True)
class Series:
    """`times` in seconds since 1970, and as many `values`; NaN where Prometheus says NaN."""

    labels: dict[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


def query_now(url: str, query: str) -> list[Series]:
    """Evaluate a query at this moment."""
    return [Series(one["metric"], (one["value"][0],), (float(one["value"][1]),)) for one in _ask(url, "query", {"query": query})]


def query_span(url: str, query: str, start_seconds: float, end_seconds: float, step_seconds: float) -> list[Series]:
    """Evaluate a query again and again between two times."""
    asked = {"query": query, "start": str(start_seconds), "end": str(end_seconds), "step": str(step_seconds)}
    out = []
    for one in _ask(url, "query_range", asked):
        times, values = zip(*one["values"], strict=True)
        out.append(Series(one["metric"], tuple(map(float, times)), tuple(map(float, values))))
    return out


def _ask(url: str, what: str, asked: dict[str, str]) -> list[dict[str, Any]]:
    try:
        with urlopen(f"{url}/api/v1/{what}?{urlencode(asked)}", timeout=ANSWER_SECONDS) as answer:
            body = json.load(answer)
    except HTTPError as error:
        raise QueryError(f"{json.load(error).get('error')}: {asked['query']}") from None
    result: list[dict[str, Any]] = body["data"]["result"]
    return result
