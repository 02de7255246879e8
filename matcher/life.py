"""The limits that a market sets to the life of a ride and of an offer. Pure; milliseconds.

What a pairing costs is matcher.policy's; these are the store's rules, judged by the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geo.model import MarketId


@dataclass(frozen=True, slots=True)
class Life:
    """`offer_ttl_ms` None: drivers are assigned at once and not asked.

    `lost_grace_ms` is how long a lost socket may be away before the offer shown on it goes back;
    `missed_offers_max` offers in a row that ran out unanswered pause the driver. A driver who has arrived may report
    a no-show after `no_show_after_ms`. A ride whose driver is taken from it after having accepted may search for
    `retry_ms` at least, even where its deadline is nearer.
    """

    offer_ttl_ms: int | None = None
    lost_grace_ms: int = 8_000
    missed_offers_max: int = 3
    no_show_after_ms: int = 300_000
    retry_ms: int = 180_000


DEFAULT = Life()
Lives = Mapping[MarketId, Life]
