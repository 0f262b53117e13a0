"""A query's way through this service; read first: one function per arrow.

    vectors topic -> TailReader -> Partition.take_record -.
    manifest      -> ManifestFollower -> Partition.swap ---+-> PartitionView
                                                           |
    request -> pin -> to_search -> search -> show -> answer (this file)

Takes: a collection's live view, a checked request. Gives: results in Qdrant's shapes with the freshness of the pinned snapshot.
Owns: the order of the steps, and their times. Never: waits, or knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from embedding.decode_pool import DecodePool
from query import scan
from query import search as plan
from query.collection_view import CollectionSnapshot
from query.filters import parse_filter
from query.found import FoundRows, RowRef, bare_point
from query.hits import Shown, lineage_of, show_point
from query.http_models import CountRequest, QueryBatchRequest, QueryRequest, ScrollRequest, Selection
from query.media import Media, MediaReader
from query.query_vectors import ByMedia, ByVector, QueryEncoders, Wanted, checked_vector, choose_field, in_metric, parse_query
from query.scroll_pins import ScrollPins
from query.search import Effort, VectorSearch


@dataclass(slots=True)
class Answer:
    """A result, what it cost, and the snapshot that it is from where that is an older one than was given."""

    result: Any
    usage: dict[str, int] = field(default_factory=dict)
    snapshot: CollectionSnapshot | None = None


class Pipeline:
    """Answers requests from pinned snapshots; thread-safe.

    Parameters
    ----------
    engines : Engines
        Log (for media), settings, metrics, clock.
    decoding : DecodePool
        Decodes the pictures of queries, and those of which thumbnails are made: strangers sent both.
    """

    def __init__(self, engines: Engines, decoding: DecodePool) -> None:
        self._engines = engines
        self.encoders = QueryEncoders(engines.settings, decoding)
        self._media = MediaReader(engines, decoding)
        self._scrolls = ScrollPins(engines.clock)
        self._usual_effort = Effort(engines.settings.target_recall)
        self._observers: dict[tuple[str, str], Callable[[float], None]] = {}

    # ---- points/query -------------------------------------------------------------------------------------------
    def query(self, snapshot: CollectionSnapshot, request: QueryRequest) -> Answer:
        """Closest points; without a query, points in the order of the media log.

        Raises
        ------
        SettingsError
            The request cannot be answered as it is.
        NotFoundError
            It names a field or a point that does not exist.
        """
        self._check_limit(request.limit)
        wanted = parse_query(request.query)
        if wanted is None:
            return self._listed(snapshot, request)
        searched = self.to_search(snapshot, wanted, request)
        with self._timed(snapshot, "search"):
            refs, compared = plan.search(snapshot, searched)
        return Answer({"points": self.show(snapshot, refs, request, payload=False)}, {"searched_rows": compared})

    def query_batch(self, snapshot: CollectionSnapshot, request: QueryBatchRequest) -> Answer:
        """The answers of several queries to one snapshot, which are those of single ones: what is alike is searched together; raises as `query`."""
        results: dict[int, Any] = {}
        searches: dict[int, VectorSearch] = {}
        for at, each in enumerate(request.searches):
            self._check_limit(each.limit)
            wanted = parse_query(each.query)
            if wanted is None:
                results[at] = self._listed(snapshot, each).result
            else:
                searches[at] = self.to_search(snapshot, wanted, each)
        with self._timed(snapshot, "search"):
            found = plan.search_many(snapshot, list(searches.values()))
        for at, (refs, _) in zip(searches, found, strict=True):
            results[at] = {"points": self.show(snapshot, refs, request.searches[at], payload=False)}
        in_order = [results[at] for at in range(len(request.searches))]
        return Answer(in_order, {"searched_rows": sum([compared for _, compared in found])})

    def to_search(self, snapshot: CollectionSnapshot, wanted: Wanted, request: QueryRequest) -> VectorSearch:
        """From what is asked for to a vector in one field."""
        searched = choose_field(snapshot.index, request.using)
        without: RowRef | None = None
        if isinstance(wanted, ByVector):
            vector = checked_vector(wanted.values, searched)
        elif isinstance(wanted, ByMedia):
            with self._timed(snapshot, "embed"):
                vector = self.encoders.encode(wanted, searched)
        else:
            without = find_point(snapshot, wanted.item_id)
            stored = without.part.vectors[searched.name].vector(without.row)
            if stored is None:
                raise SettingsError(f"the point has no vector in field {searched.name!r}", hint="name another field in `using`", code="no_vector")
            vector = in_metric(stored, searched)
        chosen = None if request.filter is None else parse_filter(request.filter, snapshot.record.attributes)
        params, effort = request.params, self._usual_effort
        if params is not None:
            target = effort.target_recall if params.target_recall is None else params.target_recall
            effort = Effort(target, params.nprobe, params.exact)
        return VectorSearch(searched, vector, request.limit, request.offset, chosen, request.score_threshold, without, effort)

    def _listed(self, snapshot: CollectionSnapshot, request: QueryRequest) -> Answer:
        chosen = parse_filter(request.filter, snapshot.record.attributes)
        with self._timed(snapshot, "scan"):
            refs, _ = scan.scroll(snapshot, None, request.offset + request.limit, chosen)
        scored = [RowRef(ref.partition, ref.part, ref.row, 0.0) for ref in refs[request.offset :]]  # Qdrant's scored points have a score
        return Answer({"points": self.show(snapshot, scored, request, payload=False)})

    def show(self, snapshot: CollectionSnapshot, refs: Sequence[RowRef], request: Selection, payload: bool) -> list[dict[str, Any]]:
        """From rows to points; `payload` says what is meant where the request does not."""
        with_payload = payload if request.with_payload is None else request.with_payload
        if with_payload is False and request.with_vector is False and not request.with_lineage:
            return refs.bare_points() if isinstance(refs, FoundRows) else [bare_point(ref) for ref in refs]
        shown = Shown(with_payload, request.with_vector, request.with_lineage)
        with self._timed(snapshot, "payload"):
            return [show_point(snapshot, ref, shown) for ref in refs]

    # ---- the other reads ----------------------------------------------------------------------------------------
    def scroll(self, snapshot: CollectionSnapshot, request: ScrollRequest) -> Answer:
        """A page of a full scan in (partition, offset, item) order, all pages from the first one's snapshot; raises as `query`."""
        self._check_limit(request.limit)
        chosen = parse_filter(request.filter, snapshot.record.attributes)
        try:
            pin, start, snapshot = self._scrolls.open(request.offset, snapshot)
        except ValueError as error:
            raise SettingsError(f"offset: {error}", hint="pass on next_page_offset as it came", code="invalid_offset") from None
        with self._timed(snapshot, "scan"):
            refs, following = scan.scroll(snapshot, start, request.limit, chosen)
        points = self.show(snapshot, refs, request, payload=True)
        return Answer({"points": points, "next_page_offset": self._scrolls.close(pin, snapshot, following)}, snapshot=snapshot)

    def count(self, snapshot: CollectionSnapshot, request: CountRequest) -> Answer:
        """Number of points that pass the filter; raises as `query`."""
        chosen = parse_filter(request.filter, snapshot.record.attributes)
        with self._timed(snapshot, "scan"):
            return Answer({"count": scan.count(snapshot, chosen)})

    def point(self, snapshot: CollectionSnapshot, item_id: str) -> Answer:
        """One point with payload and vectors; NotFoundError ``point_not_found``."""
        return Answer(show_point(snapshot, find_point(snapshot, item_id), Shown(True, True)))

    def lineage(self, snapshot: CollectionSnapshot, item_id: str) -> Answer:
        """Where a point came from; NotFoundError ``point_not_found``."""
        return Answer(lineage_of(snapshot, find_point(snapshot, item_id)))

    def media(self, snapshot: CollectionSnapshot, item_id: str) -> Media:
        """A point's media; NotFoundError ``point_not_found`` or ``media_not_found``."""
        return self._media.media(snapshot, find_point(snapshot, item_id))

    def thumbnail(self, snapshot: CollectionSnapshot, item_id: str, size_pixels: int) -> Media:
        """A point's picture made small; raises as `media`."""
        return self._media.thumbnail(snapshot, find_point(snapshot, item_id), size_pixels)

    def _check_limit(self, limit: int) -> None:
        most = self._engines.settings.max_limit
        if limit > most:
            raise SettingsError(f"limit {limit} is more than {most}", hint="ask for less, or scroll", code="limit_too_large")

    def _timed(self, snapshot: CollectionSnapshot, stage: str) -> _Timed:
        key = snapshot.record.name, stage
        observe = self._observers.get(key)
        if observe is None:
            observe = self._observers[key] = self._engines.metrics.query.labels(*key).observe
        return _Timed(self._engines.clock.monotonic_seconds, observe)


class _Timed:
    """Observes how long a step took; a class, since a generator takes three times as long to enter and leave, twice a query."""

    __slots__ = ("_now", "_observe", "_started")

    def __init__(self, now: Callable[[], float], observe: Callable[[float], None]) -> None:
        self._now, self._observe = now, observe

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *error: object) -> None:
        self._observe(self._now() - self._started)


def find_point(snapshot: CollectionSnapshot, item_id: str) -> RowRef:
    """The live row of an id.

    Raises
    ------
    NotFoundError
        ``point_not_found``: there is none, or it has expired.
    """
    for partition, view in snapshot.views.items():
        found = view.find(item_id)
        if found is not None and found[0].is_eligible(found[1], snapshot.expired_before_us):
            return RowRef(partition, *found)
    raise NotFoundError("no point has this id", hint="points appear once they are indexed; `freshness` says how far that is", code="point_not_found")
