"""Which collections there are: one thread lists them, another looks at the media log's heads.

Takes: engines. Gives: the `CollectionView` of a name. Owns: starting, replacing and stopping them.
Never: serves a deleted or re-created collection's rows under its name, or drops an old schema's view before the new one is loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError, NotFoundError, UnavailableError
from query.collection_view import CollectionView
from query.node import Node

logger = logging.getLogger(__name__)

DISCOVERY_SECONDS = 2.0
OBSERVE_SECONDS = 1.0
HANDOVER_LOOK_SECONDS = 1.0
"""How long one look for the moment lasts at which a new view has come as far as the served one."""
HANDOVER_SECONDS = 30.0
"""How long the served view is kept for one that is loaded and stays behind it."""


class Collections:
    """All collections that this node serves.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics, clock.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._catalog = CollectionCatalog(engines.store)
        self._node = Node.of(engines)
        self._served: dict[str, CollectionView] = {}
        self._arriving: dict[str, CollectionView] = {}
        self._ready_at: dict[str, float] = {}  # since when an arriving view is loaded
        self._listed = False
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=(DISCOVERY_SECONDS, self.refresh), name="discovery", daemon=True),
            threading.Thread(target=self._every, args=(OBSERVE_SECONDS, self._observe), name="observe", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, and those of every collection."""
        self._stop.set()
        self._node.pool.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(self._engines.settings.stop_seconds)
        for view in (*self._served.values(), *self._arriving.values()):
            view.stop()

    @property
    def ready(self) -> bool:
        """Whether the collections were listed and every partition of each is loaded."""
        return self._listed and all(view.ready for view in self.views())

    def check(self) -> None:
        """Raise HeadwaterError where a thread of a collection ended by mistake: a node that cannot follow must not go on answering."""
        for view in self.views():
            if view.failure is not None:
                raise HeadwaterError(
                    f"a thread of collection {view.record.name!r} ended: {type(view.failure).__name__}", hint="start again, and report it"
                ) from view.failure

    def views(self) -> list[CollectionView]:
        """The served collections, by name."""
        return [view for _, view in sorted(self._served.items())]

    def get(self, name: str) -> CollectionView:
        """The collection of that name.

        Raises
        ------
        NotFoundError
            This node knows none.
        UnavailableError
            It has not listed the collections yet.
        """
        found = self._served.get(name)
        if found is None and not self._listed:
            raise UnavailableError("the collections are being listed", hint="try again in a moment", code="collection_loading")
        if found is None:
            raise NotFoundError(
                f"collection {name[:80]!r} does not exist",
                hint="GET /collections lists what there is; a new one appears within seconds",
                code="collection_not_found",
            )
        return found

    def refresh(self) -> None:
        """List the collections once, and start, replace and stop views accordingly.

        Raises
        ------
        HeadwaterError
            The store does not answer, or a record cannot be read; what is served stays.
        """
        records = {record.name: record for record in self._catalog.list()}
        for name in set(self._served) - set(records):
            logger.info("collection is gone", extra={"collection": name})
            self._served.pop(name).stop()
            self._drop_arriving(name)
        for name, record in records.items():
            self._keep(name, record)
        self._listed = True

    def _keep(self, name: str, record: CollectionRecord) -> None:
        served = self._served.get(name)
        if served is None or served.record.incarnation != record.incarnation:
            self._served[name] = CollectionView(self._engines, record, self._node)
            self._served[name].start()
            self._drop_arriving(name)
            if served is not None:
                served.stop()
            return
        served.start()
        if _is_same(served.record, record):
            self._drop_arriving(name)
            return
        arriving = self._arriving.get(name)
        if arriving is None or not _is_same(arriving.record, record):
            self._drop_arriving(name)
            self._arriving[name] = CollectionView(self._engines, record, self._node)
        self._arriving[name].start()
        if self._may_replace(name, served):  # another schema or index of the same incarnation: the old view serves until now
            self._served[name] = self._arriving.pop(name)
            self._ready_at.pop(name, None)
            served.stop()

    def _may_replace(self, name: str, served: CollectionView) -> bool:
        """Whether the arriving view knows all that is served; after a while also one that is behind, as an operator may have wanted it."""
        arriving, now = self._arriving[name], self._engines.clock.monotonic_seconds
        if not arriving.ready:
            return False
        ready_at = self._ready_at.setdefault(name, now())
        end = now() + HANDOVER_LOOK_SECONDS
        while not self._stop.is_set() and now() < end:
            goal = served.snapshot().expected  # first: both move on
            reached = arriving.snapshot().expected
            if all(reached.get(partition, -1) >= offset for partition, offset in goal.items()):
                return True
            self._stop.wait(0.005)
        return now() - ready_at > HANDOVER_SECONDS

    def _drop_arriving(self, name: str) -> None:
        arriving = self._arriving.pop(name, None)
        self._ready_at.pop(name, None)
        if arriving is not None:
            arriving.stop()

    def _observe(self) -> None:
        for view in self.views():
            try:
                view.observe()
            except HeadwaterError as error:  # one deleted topic must not hide the others' staleness
                logger.warning("a media log cannot be looked at now: %s", error, extra={"collection": view.record.name})

    def _every(self, seconds: float, step: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                step()
            except HeadwaterError as error:
                logger.warning("collections cannot be looked at now: %s", error)
            self._stop.wait(seconds)


def _is_same(served: CollectionRecord, record: CollectionRecord) -> bool:
    """Whether a view of the one answers for the other: a pause, or an index that is not active, changes nothing here."""
    return served.seen_by(served.active_index) == record.seen_by(record.active_index)
