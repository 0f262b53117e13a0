"""Request bodies of the HTTP service, in Qdrant's shapes with ours beside them.

Takes: JSON. Gives: checked requests. Owns: names, defaults and limits of a body. Never: ignores a key that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from contracts import canonical_json
from contracts.errors import SettingsError

MAX_OFFSET = 10_000
MAX_BATCH = 64
Names = Annotated[list[Annotated[str, StringConstraints(max_length=512)]], Field(max_length=256)]
FILTER_EXAMPLE = {
    "must": [{"key": "category", "match": {"any": ["animals", "tools"]}}, {"key": "taken_at", "range": {"gte": "2026-11-01T00:00:00Z"}}],
    "must_not": [{"key": "tags", "match": {"value": "hidden"}}],
}
PartitionOffset = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Body(BaseModel):
    """Base of request bodies: types are not guessed, unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Consistency(Body):
    """How fresh an answer must be; the service waits a bounded time for it, then says 503 `not_fresh_enough`."""

    max_staleness_ms: float | None = Field(None, ge=0, allow_inf_nan=False, description="most milliseconds behind the media log's head")
    min_offsets: dict[str, PartitionOffset] = Field(
        {}, max_length=4096, description="next media offset by `TOPIC/PARTITION` or `PARTITION`, such as an earlier answer's freshness.offsets"
    )


ANYHOW = Consistency()
"""No wish at all; pydantic would copy a default that is a model, level by level, for each request that names none."""


class Selection(Body):
    """What every read of points may ask for."""

    filter: Any = Field(None, description="must, should, must_not and min_should of conditions, as in docs/filters.md", examples=[FILTER_EXAMPLE])
    with_payload: bool | Names | None = Field(None, description="attributes and text: all, none, or these names")
    with_vector: bool | Names = Field(False, description="stored vectors: all, none, or of these fields; of coded rows what their refine codes say")
    with_lineage: bool = Field(False, description="where each point came from")
    consistency: Consistency = Field(default_factory=lambda: ANYHOW)


class SearchParams(Body):
    """How hard to look. Without any of it, `target_recall` of the service's settings."""

    target_recall: float | None = Field(None, gt=0, le=1, allow_inf_nan=False, description="share of the true neighbours that is to be found")
    nprobe: int | None = Field(None, ge=1, le=2**31 - 1, description="inverted lists to look into, whatever recall that gives")
    exact: bool = Field(False, description="compare every row, with the stored refine vectors where rows are coded")
    hnsw_ef: int | None = Field(None, ge=0, description="accepted for compatibility: there is no graph")
    indexed_only: bool = Field(False, description="accepted for compatibility: what is not indexed is compared exactly")
    quantization: Any = Field(None, description="accepted for compatibility: candidates are always refined")


class QueryRequest(Selection):
    """`POST points/query`. Without `query` it lists points, in the order of the media log."""

    query: Any = Field(None, description='a list of numbers, an id, {"text": ...}, {"image": BASE64}, both keys, or {"nearest": list or id}')
    using: str | None = Field(None, max_length=63, description="field to search; `fused` where there is one, else the first")
    limit: int = Field(10, ge=1, description="most hits")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="hits to pass over")
    score_threshold: float | None = Field(None, allow_inf_nan=False, description="worst score that is returned")
    params: SearchParams | None = None


class QueryBatchRequest(Body):
    """`POST points/query/batch`: all searches see the same snapshot."""

    searches: list[QueryRequest] = Field(max_length=MAX_BATCH)
    consistency: Consistency = Field(default_factory=lambda: ANYHOW)


class ScrollRequest(Selection):
    """`POST points/scroll`: a page of a full scan."""

    limit: int = Field(10, ge=1, description="most points in the page")
    offset: str | None = Field(None, max_length=64, description="`next_page_offset` of the page before")


class CountRequest(Body):
    """`POST points/count`."""

    filter: Any = Field(None, description="as in points/query", examples=[FILTER_EXAMPLE])
    exact: bool = Field(True, description="accepted for compatibility: counts are always exact")
    consistency: Consistency = Field(default_factory=lambda: ANYHOW)


class DeleteRequest(Body):
    """`POST points/delete`: the items of one snapshot that are named, or that pass a filter."""

    points: list[Annotated[str, StringConstraints(min_length=1, max_length=512)] | int] | None = Field(None, max_length=10_000, description="ids")
    filter: Any = Field(None, description="as in points/query, with at least one condition", examples=[FILTER_EXAMPLE])
    consistency: Consistency = Field(default_factory=lambda: ANYHOW)


MODELS: tuple[type[Body], ...] = (QueryRequest, QueryBatchRequest, ScrollRequest, CountRequest, DeleteRequest)
BodyType = TypeVar("BodyType", bound=Body)


def read_body(data: bytes, model: type[BodyType], max_bytes: int) -> BodyType:
    """Parse a request body; an empty one is ``{}``.

    Raises
    ------
    SettingsError
        ``invalid_json`` or ``invalid_request``; the message names the key, never its value.
    """
    try:
        value = canonical_json.load(data, max_bytes) if data.strip() else {}
    except ValueError as error:
        raise SettingsError(f"the body is not JSON that can be read: {error}", hint="send one JSON object in UTF-8", code="invalid_json") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part)[:60] for part in first["loc"][:6]) or "the body"
        raise SettingsError(f"{name}: {first['msg']}", hint="the API is described at /docs", code="invalid_request") from None
