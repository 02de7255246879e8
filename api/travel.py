"""Who prices the ways of each market: straight lines, a file of roads, or a server of travel times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from config.markets import MarketSettings
from geo.routing import Bounds, Osrm, StraightLine, Valhalla
from matcher.decision import Travel
from matcher.policy import Market

#: A server is asked for so many pairs in one decision (P10); the certificate says for which pairs it holds.
PAIRS_MAX = 50_000

Provider = Osrm | Valhalla


def build_travel(settings: MarketSettings, market: Market) -> tuple[Market, Travel]:
    """The market, with the speed limit that is proven of its roads where it has a file, and who prices its ways.

    Opens no connection yet. Raises ValueError for a file that is no road network.
    """
    if settings.travel == "straight":
        return market, Travel()
    if settings.travel == "roads":
        assert settings.travel_links is not None  # the settings saw to it
        return replace(market, top_speed_mps=_top_speed_mps(market, settings.travel_links)), Travel(
            "roads", roads=settings.travel_links
        )
    return market, Travel(settings.travel, provider=_provider(settings, market), pairs_max=PAIRS_MAX)


def _top_speed_mps(market: Market, path: str) -> float:
    from geo.roads import RoadNetwork, RoadsError  # brings scipy along: only where it is used, and in the child

    try:
        return RoadNetwork.read(Path(path)).top_speed_mps
    except RoadsError as error:
        raise ValueError(f"market {market.id}: travel_links: {error}") from error


def _provider(settings: MarketSettings, market: Market) -> Provider:
    assert settings.travel_url is not None  # the settings saw to it
    straight = StraightLine(market.detour_factor / market.speed_mps)
    bounds = Bounds(timeout_s=settings.travel_timeout_s, call_s_max=market.solve_s_max, pairs_max=PAIRS_MAX)
    if settings.travel == "osrm":
        return Osrm(settings.travel_url, settings.profile, straight=straight, bounds=bounds)
    return Valhalla(settings.travel_url, settings.profile, straight=straight, bounds=bounds)
