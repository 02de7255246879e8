"""What goes over the wire about one ride looked at alone: more than a list of rides, or a command's answer, shows."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field, structs

from api.schema import RideOut, rfc3339, ride_out
from matcher.model import Ride, RideEvent
from matcher.store_paths import TripPath


class ChangeOut(Struct, frozen=True):
    """A change that made the ride what it was at `version`: by whom (`actor`), and why."""

    version: int
    type: str
    state: str
    code: str | None
    actor: str | None
    reason: str | None
    driver_id: str | None
    trip_id: str | None
    at: str


class RideDetailOut(RideOut, frozen=True):
    """`travelled_m` and `path` are of `trip`: what its driver drove so far, and where, as [lat, lon].

    They are up to a minute behind while it is driven, and null and empty while nothing is known. `history` are
    the ride's changes, the oldest first; `history_cut`: older ones than these are left out.
    """

    travelled_m: float | None = None
    path: list[tuple[float, float]] = field(default_factory=list)
    history: list[ChangeOut] = field(default_factory=list)
    history_cut: bool = False


def ride_detail_out(
    ride: Ride, path: TripPath | None, events: Sequence[RideEvent], *, is_cut: bool = False
) -> RideDetailOut:
    """`events` are the ride's, oldest first; those that came since it was read are left out."""
    return RideDetailOut(
        **structs.asdict(ride_out(ride)),
        travelled_m=None if path is None else round(path.distance_m, 1),
        path=[] if path is None else [(round(lat, 5), round(lon, 5)) for lat, lon in path.points],
        history=[_change_out(each) for each in events if each.version <= ride.version],
        history_cut=is_cut,
    )


def _change_out(event: RideEvent) -> ChangeOut:
    return ChangeOut(
        version=event.version,
        type=event.type,
        state=event.state.value,
        code=event.code,
        actor=event.actor,
        reason=event.reason,
        driver_id=event.driver_id,
        trip_id=event.trip_id,
        at=rfc3339(event.at_ms),
    )
