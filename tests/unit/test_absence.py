"""Who dropped out at a commit for not being there is left out for a while, and nobody else."""

from __future__ import annotations

from geo.model import DriverId
from matcher.absence import ABSENT_MS, Absences
from matcher.model import RideId, Slot, TripId
from matcher.outcomes import LOST_DRIVER_ENGAGED, LOST_DRIVER_GONE, LOST_RIDE_BUSY, LostPairing, Pairing


def lost(driver: str, why: str = LOST_DRIVER_GONE) -> LostPairing:
    pairing = Pairing(TripId("t"), RideId("r"), 1, DriverId(driver), Slot.NOW, 60.0, 400.0, 1000, {})
    return LostPairing(pairing, why)


def test_a_driver_who_was_not_there_is_left_out_for_a_while() -> None:
    absences = Absences()
    absences.note([lost("ann")], 1000)
    absences.note([lost("ben")], 2000)
    assert absences.at(1000 + ABSENT_MS - 1) == {"ann", "ben"}
    assert absences.at(1000 + ABSENT_MS) == {"ben"}
    assert absences.at(2000 + ABSENT_MS) == frozenset()


def test_whose_pairing_dropped_out_for_another_reason_is_not() -> None:
    absences = Absences()
    absences.note([lost("ann", LOST_DRIVER_ENGAGED), lost("ben", LOST_RIDE_BUSY)], 1000)
    assert absences.at(1000) == frozenset()
