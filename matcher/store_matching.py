"""What a market's matcher asks of the store and writes to it, as one method each (see matcher.store)."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from geo.model import DriverId, MarketId
from matcher import store_batch, store_batches, store_leases, store_markets, store_operator, store_sweep, store_zones
from matcher.database import Database
from matcher.life import DEFAULT, Lives
from matcher.model import Code, Hint, RideId, TripId
from matcher.outcomes import (
    LOST_DRIVER_ENGAGED,
    Approach,
    BatchRecord,
    Committed,
    LostPairing,
    Pairing,
    RideWait,
    Waiting,
)
from matcher.sessions import Conflict, Session, Unstorable, rows_of
from matcher.store_rows import can_be_id
from matcher.zones import Change, Standing

#: Pairings in one transaction; a longer plan is several, each with the lease checked.
PLAN_CHUNK = 1000


class MatchingStore:
    """The part of the store that is a matcher's."""

    def __init__(self, database: Database, lives: Lives | None = None) -> None:
        self._database = database
        self._lives: Lives = lives or {}

    # batch

    async def waiting(self, market: MarketId, *, limit: int, carrying: bool = False) -> Waiting:
        """`carrying`: also the rides under way whose drivers may be given a next one."""
        return await self._database.read(lambda session: store_batch.waiting(session, market, limit, carrying))

    async def approaching(self, market: MarketId, *, limit: int) -> list[Approach]:
        """Drivers on their way to a pickup, `limit` of them at most."""
        return await self._database.read(lambda session: store_batch.approaching(session, market, limit))

    async def withdraw(self, market: MarketId, token: int, ride_id: RideId, trip_id: TripId, code: Code) -> list[Hint]:
        """By a rule of the matcher's: the ride searches on without its driver, if that is still the same trip.

        Raises LeaseLost.
        """
        return await self._database.write(
            lambda session: store_operator.withdraw(session, market, token, ride_id, trip_id, code, self._lives)
        )

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed:
        """Raises LeaseLost. With `offer_ttl_ms` the drivers are asked, without it they are assigned."""
        whole = Committed([], [], [])
        for i in range(0, len(pairings), PLAN_CHUNK):
            part = await self._commit_part(market, token, pairings[i : i + PLAN_CHUNK], offer_ttl_ms)
            whole.hints.extend(part.hints)
            whole.trips.extend(part.trips)
            whole.lost.extend(part.lost)
        return whole

    async def _commit_part(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], offer_ttl_ms: int | None
    ) -> Committed:
        try:
            return await self._database.write(
                lambda session: store_batch.commit_plan(session, market, token, pairings, offer_ttl_ms)
            )
        except (Conflict, Unstorable):
            if len(pairings) == 1:  # the backstop: a unique key refused this one
                return Committed([], [], [LostPairing(pairings[0], LOST_DRIVER_ENGAGED)])
        middle = len(pairings) // 2
        first = await self._commit_part(market, token, pairings[:middle], offer_ttl_ms)
        second = await self._commit_part(market, token, pairings[middle:], offer_ttl_ms)
        return Committed(first.hints + second.hints, first.trips + second.trips, first.lost + second.lost)

    async def record_batch(
        self,
        market: MarketId,
        token: int,
        batch_id: str,
        *,
        summary: Mapping[str, Any],
        input: bytes | None,  # noqa: A002 - the word that the column and the address have for it
        waits: Sequence[store_batches.Wait],
        keep_batches: int = 500,
        keep_inputs: int = 8,
    ) -> None:
        """Keeps what a batch came to, and why each of `waits` (ride, reason, detail) got no driver (P12).

        Of the market only the newest `keep_batches` are kept, and the inputs of the newest `keep_inputs` among
        those that had one. Recording a batch again changes nothing. Raises LeaseLost, and ValueError for an input
        beyond INPUT_BYTES_MAX, a summary or detail that is too large, and what is no JSON (NaN).
        """
        new = await store_batches.encoded(market, batch_id, summary, input, waits)
        with contextlib.suppress(Conflict):  # only this very batch can be in the way of itself
            await self._database.write(
                lambda session: store_batches.record(session, token, new, keep_batches, keep_inputs)
            )

    async def batches(self, market: MarketId | None, *, before: str | None, limit: int) -> list[BatchRecord]:
        """Newest first, of all markets where none is named; `before` is the last id of the page before."""
        step = store_batches.list_step(market, before, limit)

        async def work(session: Session) -> list[BatchRecord]:
            return [store_batches.batch_of(row) for row in await rows_of(session, step)]

        return await self._database.read(work)

    async def batch(self, batch_id: str) -> BatchRecord | None:
        if not can_be_id(batch_id):
            return None
        return await self._database.read(lambda session: store_batches.read_batch(session, batch_id))

    async def batch_input(self, batch_id: str) -> bytes | None:
        """The input as it was given; None for an unknown batch, and where it is not kept or not any more."""
        if not can_be_id(batch_id):
            return None
        data = await self._database.read(lambda session: store_batches.read_input(session, batch_id))
        return None if data is None else await asyncio.to_thread(zlib.decompress, data)

    async def ride_wait(self, ride_id: RideId) -> RideWait | None:
        """Why the ride was last left without a driver; it stands even when the ride was matched since."""
        if not can_be_id(ride_id):
            return None
        return await self._database.read(lambda session: store_batches.read_wait(session, ride_id))

    async def sweep(self, market: MarketId, token: int, *, limit: int = 500) -> list[Hint]:
        """Ends what reached its limit of time; raises LeaseLost. `limit` bounds each kind."""
        life = self._lives.get(market, DEFAULT)
        hints = await self._database.write(lambda session: store_sweep.sweep(session, market, token, limit, life))
        old = await self._database.read(lambda session: store_sweep.old_keys(session, limit))
        if old:
            await self._database.write(lambda session: store_sweep.forget_keys(session, old))
        return hints

    # queues at places

    async def zone_standing(
        self, market: MarketId, *, seen: Collection[DriverId], since_ms: int | None = None
    ) -> Standing:
        """The market's places, with what is known of their drivers and of those who were `seen` in its zones.

        `since_ms` is the time of the look before, None for a first one.
        """
        return await self._database.read(lambda session: store_zones.standing(session, market, seen, since_ms))

    async def put_zone_changes(self, market: MarketId, token: int, changes: Sequence[Change]) -> None:
        """All of them in one transaction; writing them again changes nothing. Raises LeaseLost."""
        await self._database.write(lambda session: store_zones.put(session, market, token, changes))

    async def zone_queues(self, market: MarketId) -> dict[str, list[DriverId]]:
        """By zone, who waits, in turn; places that are held for a trip are left out."""
        return await self._database.read(lambda session: store_zones.waiting(session, market))

    # leases

    async def acquire_lease(self, market: MarketId, holder: str, ttl_ms: int) -> int | None:
        """The fencing token, or None while another holds it."""
        return await self._database.write(lambda session: store_leases.acquire(session, market, holder, ttl_ms))

    async def renew_lease(self, market: MarketId, holder: str, token: int, ttl_ms: int) -> bool:
        step = store_leases.RENEW_LEASE(of_market=market, of_holder=holder, of_token=token, ttl_ms=ttl_ms)

        async def work(session: Session) -> bool:
            return (await session.run(step))[0].matched == 1

        return await self._database.write(work)

    async def release_lease(self, market: MarketId, token: int) -> None:
        step = store_leases.RELEASE_LEASE(of_market=market, of_token=token)
        await self._database.write(lambda session: session.run(step))

    async def matcher_seen(self, holder: str, *, unseen_ms: int) -> int:
        """Says that this matcher process lives; how many do. Those unseen for `unseen_ms` are forgotten."""
        return await self._database.write(lambda session: store_markets.matcher_seen(session, holder, unseen_ms))

    async def matcher_gone(self, holder: str) -> None:
        await self._database.write(lambda session: store_markets.matcher_gone(session, holder))
