"""The deployment's markets, found by name or by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from api.errors import invalid
from api.positions import is_null_island
from config.markets import MarketSettings
from config.zones import ZoneSettings
from geo.area import Area, Circle, area_from_geojson, boxes_meet
from geo.model import LatLng, MarketId
from matcher.life import Life
from matcher.policy import Market
from matcher.zones import Zone


class Markets:
    """Where areas overlap, the market that stands first in the list takes the ride."""

    def __init__(self, markets: Sequence[Market]) -> None:
        self._by_id = {market.id: market for market in markets}

    def __iter__(self) -> Iterator[Market]:
        return iter(self._by_id.values())

    def get(self, market: MarketId | str) -> Market | None:
        """The market of this id; None where this deployment has none such, or none such any more."""
        return self._by_id.get(MarketId(market))

    def named(self, name: str | None, pointer: str = "?market") -> Market:
        """The market of this name; the only one there is when none is named. Raises Problem 422."""
        if name is None and len(self._by_id) == 1:
            return next(iter(self))
        market = self._by_id.get(MarketId(name)) if name else None
        if market is None:
            known = ", ".join(list(self._by_id)[:20])
            raise invalid(pointer, f"names no market; there are: {known}")
        return market

    def at(self, point: LatLng, pointer: str) -> Market:
        """The market that serves this place. Raises Problem 422, (0, 0) included."""
        check_plausible(point, pointer)
        for market in self:
            if market.area.contains(point.lat, point.lon):
                return market
        raise invalid(pointer, "no market serves this place", code="no-market")


def check_plausible(point: LatLng, pointer: str) -> None:
    """Raises Problem 422 for (0, 0), where nobody is but many broken apps say they are."""
    if is_null_island(point.lat, point.lon):
        raise invalid(pointer, "the position (0, 0) is not plausible", code="null-island")


def build_market(settings: MarketSettings, tags: Sequence[str] = ()) -> Market:
    """What the operator said, as the matcher wants it; `tags` are the deployment's, for a market that names none.

    Raises ValueError naming what makes no sense.
    """
    window_s = settings.window_s_min if isinstance(settings.window_s, str) else settings.window_s
    return Market(
        id=MarketId(settings.id),
        area=_area(settings),
        window_s=window_s,
        # The longest, where the window has one length, is that one.
        window_s_max=settings.window_s_max if settings.is_adaptive else window_s,
        adaptive_window=settings.is_adaptive,
        max_pickup_s=settings.max_pickup_s,
        max_pickup_m=settings.max_pickup_m,
        pickup_growth=settings.pickup_growth,
        pickup_s_most=settings.pickup_s_most,
        speed_mps=settings.speed_mps,
        detour_factor=settings.detour_factor,
        classes=settings.classes,
        unmatched_base_s=settings.unmatched_base_s,
        unmatched_growth=settings.unmatched_growth,
        candidates_per_ride=settings.candidates_per_ride,
        deadline_default_ms=round(settings.deadline_s * 1000),
        deadline_max_ms=round(settings.deadline_max_s * 1000),
        abandon_after_ms=round(settings.abandon_after_s * 1000),
        solve_s_max=settings.solve_s_max,
        seats_max=settings.seats_max,
        rides_per_batch_max=settings.rides_per_batch_max,
        downgrade_s=settings.downgrades,
        tags=settings.tags or tuple(tags),
        idle_bonus=settings.idle_bonus,
        idle_bonus_s_max=settings.idle_bonus_s_max,
        refusal_s=settings.refusal_s,
        has_ways=settings.has_ways,
        top_speed_mps=settings.top_speed_mps,
        zones=tuple(_zone(each, settings) for each in settings.zones),
        life=_life(settings),
        chain_within_s=settings.chain_within_s,
        chain_late_s=settings.chain_late_s,
        stall_after_s=settings.stall_after_s,
        stall_m=settings.stall_m,
        schedule_lead_s=settings.schedule_lead_s,
        schedule_ahead_s=settings.schedule_ahead_s,
        guarantee_s=settings.guarantee_s,
    )


def _life(settings: MarketSettings) -> Life:
    return Life(
        offer_ttl_ms=_ms(settings.offer_ttl_s) if settings.asks_drivers else None,
        lost_grace_ms=_ms(settings.lost_grace_s),
        missed_offers_max=settings.missed_offers_max,
        no_show_after_ms=_ms(settings.no_show_after_s),
        retry_ms=_ms(settings.retry_s),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _zone(settings: ZoneSettings, market: MarketSettings) -> Zone:
    """Raises ValueError for a zone that no driver of the market can be in."""
    zone = Zone(settings.id, _area(settings), round(settings.keep_s * 1000))
    if not boxes_meet(zone.area.bbox, _area(market).bbox):
        raise ValueError(f"market {market.id}: zone {zone.id} lies outside of the market's area")
    return zone


def _area(settings: MarketSettings | ZoneSettings) -> Area:
    if settings.geometry is not None:
        return area_from_geojson(settings.geometry)
    assert settings.center_lat is not None
    assert settings.center_lon is not None
    assert settings.radius_m is not None
    return Circle(LatLng(settings.center_lat, settings.center_lon), settings.radius_m)
