"""What the service tells of itself: metrics for Prometheus, and logs.

Metrics live in a registry of their own, so that two services in one process
(tests) don't mix. What the hot path counts are plain integers (`Tally`), read
when somebody scrapes. Logs carry the request's id; they carry no token and no
coordinate.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from matcher.recording import BatchReport

Sample = tuple[tuple[str, ...], float]

#: The id of the request that is being answered; every line of the log that comes of it carries it.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


class Tally(Collector):
    """A counter by labels that costs one dict operation to increase."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        registry.register(self)

    def add(self, *labels: str, n: int = 1) -> None:
        self.counts[labels] += n

    def total(self) -> int:
        return sum(self.counts.values())

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Durations(Collector):
    """A histogram of seconds by labels, added up when somebody scrapes: adding costs two dict operations."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: tuple[str, ...], buckets_s: tuple[float, ...]
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._buckets_s = buckets_s
        #: By labels: the counts of each bucket alone, that beyond the last one, and the sum of seconds.
        self._counted: dict[tuple[str, ...], list[float]] = {}
        registry.register(self)

    def add(self, *labels: str, seconds: float) -> None:
        counted = self._counted.get(labels)
        if counted is None:
            counted = self._counted[labels] = [0.0] * (len(self._buckets_s) + 2)
        counted[bisect_left(self._buckets_s, seconds)] += 1.0
        counted[-1] += seconds

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*map(str, self._buckets_s), "+Inf"]
        for labels, counted in list(self._counted.items()):
            family.add_metric(labels, list(zip(bounds, accumulate(counted[:-1]), strict=True)), counted[-1])
        yield family


class Reading(Collector):
    """A gauge whose samples are read when somebody scrapes."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        read: Callable[[], Iterable[Sample]],
        labels: tuple[str, ...] = (),
    ) -> None:
        self._name, self._text, self._read, self._labels = name, text, read, labels
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        # Registering must not read: what is read may not have been built yet.
        return [GaugeMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._read():
            family.add_metric(labels, value)
        yield family


class Metrics:
    """Every metric that the API counts itself."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Durations(
            registry,
            "hexhail_request_seconds",
            "Time to answer a request, by route.",
            ("method", "route", "status"),
            buckets_s=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
        )
        self.problems = Tally(registry, "hexhail_problems", "Problems answered, by code.", ("code",))
        self.fixes = Tally(registry, "hexhail_fixes", "Position fixes received, by what became of them.", ("verdict",))
        self.bad_frames = Tally(registry, "hexhail_bad_frames", "Frames that were refused, by code.", ("code",))
        self.published = Tally(registry, "hexhail_positions_published", "Positions handed to the feed.")
        self.flush_failures = Tally(registry, "hexhail_flush_failures", "Flushes that found the feed unavailable.")
        self.sockets_closed = Tally(registry, "hexhail_sockets_closed", "Driver sockets closed by us.", ("code",))
        self.aborted = Tally(registry, "hexhail_sockets_aborted", "Sockets given up: they did not read.", ("kind",))
        self.engaged_stale = Tally(
            registry, "hexhail_nearby_engaged_stale", "Answers whose engaged drivers are older than usual."
        )
        self.batch_seconds = Histogram(
            "hexhail_batch_seconds",
            "Time from reading what waits to the committed plan.",
            ["market"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
            registry=registry,
        )
        self.batches = Tally(registry, "hexhail_batches", "Batches decided.", ("market", "certified"))
        self.webhooks = Tally(
            registry, "hexhail_webhook_attempts", "Attempts to deliver an event, by what became of them.", ("outcome",)
        )
        self.lost = Tally(registry, "hexhail_pairings_lost", "Pairings that dropped out at the commit.", ("why",))

    def on_batch(self, report: BatchReport) -> None:
        """Counts one batch of a dispatcher."""
        self.batch_seconds.labels(report.market).observe(report.batch_s)
        self.batches.add(report.market, "yes" if report.certified else "no")
        for why, count in report.lost.items():
            self.lost.add(why, n=count)

    def reading(self, name: str, text: str, read: Callable[[], Iterable[Sample]], labels: tuple[str, ...] = ()) -> None:
        """Adds a gauge that is read when somebody scrapes."""
        Reading(self.registry, name, text, read, labels)


def with_request_id(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Looked up only where something is logged, which few requests do."""
    request_id = REQUEST_ID.get()
    return event if request_id is None else {"request_id": request_id, **event}


def configure_logging(level: str, form: str) -> None:
    """Sends structlog and the standard library's logs to standard error.

    `form` is json, console, or auto: console on a terminal, JSON elsewhere.
    """
    shared: list[Any] = [
        with_request_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
