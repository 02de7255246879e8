"""Gauges that are read off the running service when somebody scrapes its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from api.telemetry import Sample
from geo.routing import BreakerState, Osrm, Valhalla

if TYPE_CHECKING:
    from api.service import Service

_MARKET = ("market",)


def add_readings(service: Service) -> None:
    """Registers every gauge of the service; nothing is read yet."""
    _of_process(service)
    _of_replicas(service)
    _of_matching(service)
    _of_travel(service)
    _of_webhooks(service)


def _of_process(service: Service) -> None:
    read = service.metrics.reading
    read("hexhail_sockets", "Driver sockets and event streams open.", _one(lambda: service.sockets.count))
    read("hexhail_requests", "Requests under way.", _one(lambda: service.requests.count))
    read("hexhail_desk_waiting", "Commands inside the ride desk.", _one(lambda: service.desk.waiting))
    read("hexhail_signing_on", "Drivers whose sign-on is under way.", _one(lambda: service.sign_on_desk.waiting))
    read(
        "hexhail_degraded",
        "1 while readiness is not plainly ready.",
        _one(lambda: float(service.readiness().state != "ready")),
    )
    stats = service.announcer.stats
    read("hexhail_announced", "Hints published since the start.", _one(lambda: stats.announced))
    read("hexhail_relayed", "Hints published for another process that could not.", _one(lambda: stats.relayed))


def _of_replicas(service: Service) -> None:
    read, planes = service.metrics.reading, service.planes
    read(
        "hexhail_drivers",
        "Drivers in this process's replica.",
        lambda: [((market,), len(plane.index)) for market, plane in planes.items()],
        _MARKET,
    )
    read(
        "hexhail_feed_silent_seconds",
        "Since the feed was last heard of.",
        lambda: [((market,), plane.follower.silent_ms() / 1000.0) for market, plane in planes.items()],
        _MARKET,
    )
    read(
        "hexhail_positions_waiting",
        "Drivers whose newest state waits for a flush.",
        lambda: [((market,), len(plane.flusher)) for market, plane in planes.items()],
        _MARKET,
    )


def _of_matching(service: Service) -> None:
    read, dispatchers = service.metrics.reading, service.dispatchers

    def each(value: Callable[[int], float]) -> Callable[[], Iterable[Sample]]:
        return lambda: [((one.market.id,), value(number)) for number, one in enumerate(dispatchers)]

    read("hexhail_leading", "1 where this process matches.", each(lambda n: dispatchers[n].stats.leading), _MARKET)
    read("hexhail_windows", "Windows since the start.", each(lambda n: dispatchers[n].stats.windows), _MARKET)
    read(
        "hexhail_windows_skipped",
        "Windows that the one before took up.",
        each(lambda n: dispatchers[n].stats.windows_skipped),
        _MARKET,
    )
    read(
        "hexhail_windows_blind",
        "Windows without live positions.",
        each(lambda n: dispatchers[n].stats.windows_blind),
        _MARKET,
    )
    read("hexhail_matched", "Trips committed since the start.", each(lambda n: dispatchers[n].stats.matched), _MARKET)
    read(
        "hexhail_windows_paused",
        "Windows of a market that an operator has paused.",
        each(lambda n: dispatchers[n].stats.windows_paused),
        _MARKET,
    )
    read(
        "hexhail_chained",
        "Of the trips, those to follow another.",
        each(lambda n: dispatchers[n].stats.chained),
        _MARKET,
    )
    read("hexhail_queued", "Of the trips, those of queues.", each(lambda n: dispatchers[n].stats.queued), _MARKET)
    read("hexhail_stalled", "Drivers replaced for stalling.", each(lambda n: dispatchers[n].upkeep.stalled), _MARKET)
    read(
        "hexhail_batches_unrecorded",
        "Batches whose record could not be written.",
        each(lambda n: dispatchers[n].stats.unrecorded),
        _MARKET,
    )
    read("hexhail_swept", "Rides and trips ended by the sweep.", each(lambda n: dispatchers[n].upkeep.swept), _MARKET)


def _of_travel(service: Service) -> None:
    read = service.metrics.reading
    asked = [
        (each.market.id, each.travel.provider)
        for each in service.dispatchers
        if isinstance(each.travel.provider, Osrm | Valhalla)
    ]
    read(
        "hexhail_travel_pairs",
        "Pairs whose travel time was asked for, by what became of them; estimated: a straight line stood in.",
        lambda: [
            ((market, kind), float(getattr(provider, f"{kind}_pairs")))
            for market, provider in asked
            for kind in ("asked", "answered", "estimated")
        ],
        ("market", "kind"),
    )
    read(
        "hexhail_travel_failures",
        "Tables of travel times that failed, by kind.",
        lambda: [((market, why), float(n)) for market, provider in asked for why, n in provider.failures.items()],
        ("market", "why"),
    )
    read(
        "hexhail_travel_fallback",
        "1 while straight lines stand in for a server of travel times that keeps failing.",
        lambda: [((market,), float(provider.state is not BreakerState.CLOSED)) for market, provider in asked],
        _MARKET,
    )


def _of_webhooks(service: Service) -> None:
    sender = service.webhooks
    if sender is None:
        return
    read = service.metrics.reading
    read("hexhail_webhooks_sending", "Events on their way to webhooks.", _one(lambda: sender.sending))
    read(
        "hexhail_webhook_overdue_seconds",
        "How long the delivery that waits longest could have been tried.",
        _one(lambda: sender.overdue_s),
    )


def _one(value: Callable[[], float]) -> Callable[[], Iterable[Sample]]:
    return lambda: [((), value())]
