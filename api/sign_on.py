"""A driver's sign-on, as its own socket and a fleet's gateway do it: an epoch of its own (P7), and one market (P6)."""

from __future__ import annotations

import time

import structlog

from api.errors import Problem
from api.planes import Planes
from api.positions import Track
from api.tags import Tags
from geo.feed import Feed, FeedUnavailable
from geo.model import DriverId, MarketId, Removal, Stamp
from matcher.model import DriverStatus
from matcher.outcomes import SignedOn
from matcher.policy import Market
from matcher.sign_ons import SignOnDesk

log = structlog.stdlib.get_logger(__name__)


class SignOns:
    """`instance` is the app's or the gateway's own, for the stamps of positions."""

    def __init__(self, *, desk: SignOnDesk, feed: Feed, planes: Planes, tags: Tags, max_speed_mps: float) -> None:
        self._desk = desk
        self._feed = feed
        self._planes = planes
        self._tags = tags
        self._max_speed_mps = max_speed_mps

    async def sign_on(self, driver_id: DriverId, market: Market, instance: int, *, online: bool) -> SignedOn:
        """A new epoch for this driver. Raises Problem 403 or 404, Overloaded and StoreUnavailable."""
        signed = await self._desk.sign_on(driver_id, market.id, online=online)
        if signed is None:
            raise Problem("driver-unknown", f"put the driver first: PUT /v1/drivers/{driver_id}")
        if signed.driver.status is DriverStatus.SUSPENDED:
            raise Problem("driver-suspended", "the driver is suspended")
        if signed.left is not None and signed.left in self._planes:
            await self._leave_market(signed.left, Stamp(signed.driver.epoch, instance, 0), driver_id)
        return signed

    async def _leave_market(self, market: MarketId, stamp: Stamp, driver_id: DriverId) -> None:
        """A driver is found in one market only (P6); were this to fail, the old position goes stale by itself."""
        try:
            await self._feed.publish(market, (), [Removal(driver_id, stamp)])
        except FeedUnavailable as error:
            log.info("a position stays behind in the market that its driver left", reason=str(error))

    def track(self, signed: SignedOn, market: Market, instance: int) -> Track:
        """The new session's way, going on from where the driver stands in this process's replica."""
        driver = signed.driver
        track = Track(
            driver.driver_id,
            epoch=driver.epoch,
            instance=instance,
            vehicle_class=driver.vehicle_class,
            seats=driver.seats,
            area=market.area,
            max_speed_mps=self._max_speed_mps,
            tags=self._tags.mask(driver.tags),
            available=driver.status is DriverStatus.ONLINE,
        )
        index, now_ms = self._planes[market.id].index, self._feed.now_ms()
        last = index.held(driver.driver_id, now_ms)
        if last is not None and index.fresh([driver.driver_id], now_ms)[0]:
            track.follow(last, time.monotonic())
        return track
