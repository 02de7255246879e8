"""How simulated drivers behave: the shares and times of it, and what one driver draws from them.

Pure. A driver draws from generators of its own, one for offers, one for trips and one for breaks, and every choice
takes as many draws whatever the shares are: its n-th offer is answered alike in all runs of a seed, whatever the
service, the network and the other drivers did before. Times are seconds of the process's clock.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from enum import StrEnum

from api.client_driver import DriverOptions


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How the drivers behave; shares are from 0 to 1.

    Of the offers, `decline_share` are declined and `ignore_share` let run out; the others are accepted, and all
    answers given after `answer_s` on average. Of offers and of trips, `lose_share` lose their driver's network some
    time during them, for about `lost_s`. Of the trips, `cancel_share` are given back on the way to the pickup, and
    for `no_show_share` nobody comes there. `break_share` of the drivers go on a break now and then, after `online_s`
    on average, for about `rest_s`; who is paused for missed offers rests as long.

    `http_share` of drivers send their commands over HTTP, `wander_m` is how far an idle driver roams (0: not).
    """

    speed_mps: float
    position_interval_s: float
    parked_interval_s: float
    boarding_s: float = 1.0
    answer_s: float = 1.0
    decline_share: float = 0.0
    ignore_share: float = 0.0
    lose_share: float = 0.0
    lost_s: float = 10.0
    cancel_share: float = 0.0
    no_show_share: float = 0.0
    break_share: float = 0.0
    online_s: float = 60.0
    rest_s: float = 10.0
    http_share: float = 0.0
    wander_m: float = 0.0
    signing_on_max: int = 48
    sign_on_s: float = 60.0
    market: str | None = None
    driver: DriverOptions = field(default_factory=DriverOptions)


class Answer(StrEnum):
    """What a driver makes of an offer; the first two are the commands' names."""

    ACCEPT = "accept"
    DECLINE = "decline"
    IGNORE = "ignore"


class Leg(StrEnum):
    TO_PICKUP = "to pickup"
    TO_DROPOFF = "to drop-off"


@dataclass(frozen=True, slots=True)
class OfferChoice:
    """`after_s` until the answer; `lost_s` is how long the network is lost halfway there, 0: not at all."""

    answer: Answer
    after_s: float
    lost_s: float


@dataclass(frozen=True, slots=True)
class TripChoice:
    """`lost_s` is how long the network is lost, on the way `lost_on` and after `lost_at` (0 to 1) of it; 0: not."""

    gives_back: bool
    rider_comes: bool
    lost_s: float
    lost_on: Leg
    lost_at: float


class Choices:
    """One driver's choices, one after another."""

    def __init__(self, options: FleetOptions, rng: random.Random) -> None:
        self._options = options
        self._offers, self._trips, self._breaks = (random.Random(rng.getrandbits(64)) for _ in range(3))
        self._takes_breaks = self._breaks.random() < options.break_share

    def offer(self) -> OfferChoice:
        rng, options = self._offers, self._options
        drawn = rng.random()
        answer = Answer.ACCEPT
        if drawn < options.decline_share:
            answer = Answer.DECLINE
        elif drawn < options.decline_share + options.ignore_share:
            answer = Answer.IGNORE
        return OfferChoice(answer, _wait_s(rng, options.answer_s), self._lost_s(rng))

    def trip(self) -> TripChoice:
        rng, options = self._trips, self._options
        return TripChoice(
            gives_back=rng.random() < options.cancel_share,
            rider_comes=rng.random() >= options.no_show_share,
            lost_s=self._lost_s(rng),
            lost_on=Leg.TO_PICKUP if rng.random() < 0.5 else Leg.TO_DROPOFF,
            lost_at=rng.random(),
        )

    def online_s(self) -> float:
        """Until the next break; infinite for who takes none."""
        drawn_s = _wait_s(self._breaks, self._options.online_s)
        return drawn_s if self._takes_breaks else math.inf

    def rest_s(self) -> float:
        return _about_s(self._breaks, self._options.rest_s)

    def _lost_s(self, rng: random.Random) -> float:
        lost, drawn_s = rng.random() < self._options.lose_share, _about_s(rng, self._options.lost_s)
        return drawn_s if lost else 0.0


def _wait_s(rng: random.Random, mean_s: float) -> float:
    """Exponentially distributed, as waits for what may happen at any time are."""
    return -math.log(1.0 - rng.random()) * mean_s


def _about_s(rng: random.Random, mean_s: float) -> float:
    """Evenly from half of the mean to half as much again."""
    return rng.uniform(0.5, 1.5) * mean_s
