"""/v1/drivers/nearby: who is near one place (GET), or near each of many (POST).

Answered from this process's replicas, in memory: no round trip but for who is engaged, now and then. A question for
many places is answered in parts, between which the event loop serves others (P10); each part is one moment's picture.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from aiohttp import web

from api.auth import Role
from api.codec import (
    BodyDecoder,
    answer,
    number_within,
    query_choice,
    query_float,
    query_int,
    query_names,
    speaks_msgpack,
)
from api.engaged import Engaged
from api.errors import Problem, invalid
from api.limits import read_body
from api.markets import Markets
from api.match_items import Refusals
from api.planes import Planes, trusted
from api.schema import NearbyOut, NearbyPage, Point
from api.schema_nearby import (
    K_DEFAULT,
    K_MAX,
    METRES_MAX,
    PAIRS_MAX,
    POINTS_MAX,
    SEATS_MAX,
    DriverColumns,
    NearbyMany,
    NearbyRequest,
    NearPoint,
)
from api.security import identity_of
from api.tags import Tags, known_tags
from geo.answers import Candidates
from geo.feed import Feed
from geo.index import DriverIndex, Found
from geo.model import DriverId, LatLng, MarketId, Where
from geo.records import Records
from geo.search import in_tenths
from matcher.policy import Market
from matcher.problem import STEPS_PER_S

ENGAGED_AGE_HEADER: Final = "Hexhail-Engaged-Age"
BODY_S_MAX: Final = 10.0
#: Room to write a point, whatever its digits.
BODY_BYTES_A_POINT: Final = 128
#: Pairs looked for at a stretch: about a millisecond of the loop.
PAIRS_AT_ONCE: Final = 1000

#: What clients ask for is much the same each time: so many wishes are remembered, of so many characters at most.
WISHES_KEPT: Final = 256
WISH_CHARS_MAX: Final = 256
#: How most questions begin; no character in it stands for another.
_PLAIN: Final = re.compile(r"lat=([0-9.-]*)&lon=([0-9.-]*)(?:&(.*))?", re.ASCII)

_BODY: Final = BodyDecoder(NearbyRequest)
_POINT: Final = BodyDecoder(Point)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody looks for around a place. `tags` are known ones; `idle` leaves out who is engaged."""

    k: int
    limit_m: float
    vehicle_class: str | None
    seats: int
    tags: Sequence[str]
    idle: bool


class NearbyApi:
    def __init__(self, *, search: NearbySearch, markets: Markets, tags: Tags, max_body_bytes: int) -> None:
        self._search = search
        self._markets = markets
        self._tags = tags
        self._max_body_bytes = max(max_body_bytes, POINTS_MAX * BODY_BYTES_A_POINT)
        #: By market, and what stands after a question's place.
        self._wishes: dict[tuple[MarketId, str], Wish] = {}

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/drivers/nearby", self.near_one), web.post("/v1/drivers/nearby", self.near_many)]

    async def near_one(self, request: web.Request) -> web.Response:
        identity_of(request).need(Role.CLIENT, Role.FLEET)
        plain = _PLAIN.fullmatch(request.rel_url.raw_query_string)
        point = _point(request) if plain is None else _plain_point(plain)
        market = self._markets.at(point, "?lat")
        wish = _wish(request, market) if plain is None else self._wish_after(plain, request, market)
        items, engaged_age_s = await self._search.near_one(market, point, wish)
        return answer(request, NearbyPage(items), headers=_age_header(engaged_age_s))

    def _wish_after(self, plain: re.Match[str], request: web.Request, market: Market) -> Wish:
        """The wish of a question that begins with its place: it follows from what comes after."""
        key = (market.id, plain[3] or "")
        wish = self._wishes.get(key)
        if wish is None:
            wish = _wish(request, market)
            if len(self._wishes) >= WISHES_KEPT:
                self._wishes.clear()
            if len(key[1]) <= WISH_CHARS_MAX:
                self._wishes[key] = wish
        return wish

    async def near_many(self, request: web.Request) -> web.Response:
        identity_of(request).need(Role.CLIENT, Role.FLEET)
        is_msgpack = speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        body = _BODY.decode(data, is_msgpack=is_msgpack)
        _check_work(body)
        named = None if body.market is None else self._markets.named(body.market, "/market")
        tags = known_tags(body.tags, self._tags.names if named is None else named.tags, "/tags")
        wish = Wish(body.k, body.limit_m, body.vehicle_class, body.seats, tags, body.idle)
        found, engaged_age_s = await self._search.near_many(self._read(body.points, named, is_msgpack), wish)
        return answer(request, found, headers=_age_header(engaged_age_s))

    def _read(self, raws: Sequence[msgspec.Raw], named: Market | None, is_msgpack: bool) -> Places:
        """The points that can be used, by market; of a named one only those that it serves."""
        places = Places(len(raws), {}, Refusals())
        for number, raw in enumerate(raws):
            try:
                point = _POINT.decode(bytes(raw), is_msgpack=is_msgpack).to_model()
                market = self._markets.at(point, "") if named is None else _served(point, named)
            except Problem as problem:
                places.refusals.add(f"/points/{number}", problem)
            else:
                places.by_market.setdefault(market.id, (market, []))[1].append((number, point))
        return places


@dataclass(frozen=True, slots=True)
class Places:
    """Sound points with their numbers in the question, by the market that serves them."""

    asked: int
    by_market: dict[MarketId, tuple[Market, list[tuple[int, LatLng]]]]
    refusals: Refusals


def _check_work(body: NearbyRequest) -> None:
    """Raises Problem 422."""
    if len(body.points) > POINTS_MAX:
        raise invalid("/points", f"at most {POINTS_MAX} are taken at once; these are {len(body.points)}")
    if len(body.points) * body.k > PAIRS_MAX:
        raise invalid("/k", f"at most {PAIRS_MAX} drivers may be asked for at once, points times k")


def _served(point: LatLng, market: Market) -> Market:
    """Raises Problem 422."""
    if not market.area.contains(point.lat, point.lon):
        raise invalid("", f"the market {market.id} does not serve this place", code="no-market")
    return market


def _point(request: web.Request) -> LatLng:
    """Raises Problem 422."""
    lat = query_float(request, "lat", least=-90.0, most=90.0)
    lon = query_float(request, "lon", least=-180.0, most=180.0)
    if lat is None or lon is None:
        raise invalid("?lat" if lat is None else "?lon", "is needed")
    return LatLng(lat, lon)


def _plain_point(plain: re.Match[str]) -> LatLng:
    """The same of a question that begins with its place."""
    lat = number_within(plain[1], "lat", least=-90.0, most=90.0)
    return LatLng(lat, number_within(plain[2], "lon", least=-180.0, most=180.0))


def _wish(request: web.Request, market: Market) -> Wish:
    """Of a question for one point. Raises Problem 422."""
    limit_m = query_float(request, "limit_m", least=0.0, most=METRES_MAX)
    return Wish(
        k=query_int(request, "k", K_DEFAULT, least=1, most=K_MAX),
        limit_m=METRES_MAX if limit_m is None else limit_m,
        vehicle_class=request.query.get("class"),
        seats=query_int(request, "seats", 1, least=1, most=SEATS_MAX),
        tags=known_tags(query_names(request, "tags"), market.tags, "?tags"),
        idle=query_choice(request, "idle", ("true", "false")) != "false",
    )


def _age_header(engaged_age_s: float) -> dict[str, str]:
    return {ENGAGED_AGE_HEADER: f"{engaged_age_s:.1f}"}


class NearbySearch:
    """Finds drivers in this process's replicas."""

    def __init__(self, *, feed: Feed, planes: Planes, engaged: Engaged, tags: Tags, stale_after_s: float) -> None:
        self._feed = feed
        self._planes = planes
        self._engaged = engaged
        self._tags = tags
        self._stale_after_s = stale_after_s
        #: By market and wish, while the same drivers are engaged.
        self._wheres: dict[tuple[MarketId, Wish], Where] = {}
        self._wheres_of: frozenset[DriverId] | None = None

    async def near_one(self, market: Market, point: LatLng, wish: Wish) -> tuple[list[NearbyOut], float]:
        """The nearest drivers, and how old (seconds) the knowledge of who is engaged is.

        Raises Problem 503 when the replica cannot be trusted.
        """
        engaged, engaged_age_s = await self._engaged.read()
        index = trusted(self._planes, market.id, self._stale_after_s)  # judged when it is used (P5)
        where = self._where(market, wish, engaged)
        found = index.nearest_columns(point, wish.k, limit_m=wish.limit_m, where=where, now_ms=self._feed.now_ms())
        return nearby_out(found, market, engaged, self._tags), engaged_age_s

    async def near_many(self, places: Places, wish: Wish) -> tuple[NearbyMany, float]:
        """The same for many places. Raises Problem 503 when a replica that is needed cannot be trusted."""
        engaged, engaged_age_s = await self._engaged.read()
        gathered = _Gathered(places.asked, engaged, self._tags)
        at_once = max(1, PAIRS_AT_ONCE // wish.k)
        for market, points in places.by_market.values():
            where = self._where(market, wish, engaged)
            for begin in range(0, len(points), at_once):
                # Judged again for each part: while others were served, the feed may have fallen silent (P5).
                index = trusted(self._planes, market.id, self._stale_after_s)
                gathered.add(_part(index, points[begin : begin + at_once], market, wish, where, self._feed.now_ms()))
                await asyncio.sleep(0)
        return gathered.answer(places.refusals), engaged_age_s

    def _where(self, market: Market, wish: Wish, engaged: frozenset[DriverId]) -> Where:
        if engaged is not self._wheres_of or len(self._wheres) >= WISHES_KEPT:
            self._wheres.clear()
            self._wheres_of = engaged
        where = self._wheres.get((market.id, wish))
        if where is None:
            where = self._wheres[market.id, wish] = self._new_where(market, wish, engaged)
        return where

    def _new_where(self, market: Market, wish: Wish, engaged: frozenset[DriverId]) -> Where:
        return Where(
            vehicle_classes=None if wish.vehicle_class is None else market.classes_for(wish.vehicle_class),
            seats_min=wish.seats,
            exclude=engaged if wish.idle else frozenset(),
            tags=self._tags.mask(wish.tags),
        )


def nearby_out(found: Found, market: Market, engaged: Collection[DriverId], tags: Tags) -> list[NearbyOut]:
    """In the columns' order. Times to the pickup are those of `Market.pickup_s`, in compiled code as all numbers are:
    rounding them in Python would take longer than finding the drivers.
    """
    ids, kinds, of_mask = found.ids, found.kinds, tags.of_mask
    told = in_tenths(found.floats, found.whole, market.detour_factor / market.speed_mps, STEPS_PER_S)
    items = []
    for (lat, lon, away_m, drive_s, age_s), (slot, kind, _) in zip(told.tolist(), found.whole.tolist(), strict=True):
        name, (vehicle_class, seats, _, mask) = ids[slot], kinds[kind]
        is_engaged, its_tags = name in engaged, of_mask(mask)
        items.append(NearbyOut(name, lat, lon, away_m, drive_s, age_s, vehicle_class, seats, is_engaged, its_tags))
    return items


@dataclass(frozen=True, slots=True)
class _Part:
    """What was found around some points of one market, at one moment; `records` are of the found drivers."""

    numbers: list[int]
    market: Market
    found: Candidates
    records: Records
    now_ms: int


def _part(
    index: DriverIndex,
    points: Sequence[tuple[int, LatLng]],
    market: Market,
    wish: Wish,
    where: Where,
    now_ms: int,
) -> _Part:
    lats, lons = [point.lat for _, point in points], [point.lon for _, point in points]
    found = index.candidates(lats, lons, wish.k, limit_m=wish.limit_m, where=where, now_ms=now_ms)
    return _Part([number for number, _ in points], market, found, index.records_of(found.driver_ids), now_ms)


class _Gathered:
    """The answer as it grows, part by part. A driver is described as it was when it was first found."""

    def __init__(self, asked: int, engaged: Collection[DriverId], tags: Tags) -> None:
        self._engaged = engaged
        self._tags = tags
        self._points: list[NearPoint | None] = [None] * asked
        self._drivers = DriverColumns()
        self._numbers: dict[DriverId, int] = {}

    def add(self, part: _Part) -> None:
        driver = self._described(part).take(part.found.driver).tolist()
        distance_m = np.round(part.found.distance_m, 1).tolist()
        pickup_s = np.round(part.market.pickup_s(part.found.distance_m), 1).tolist()
        ends = np.searchsorted(part.found.point, np.arange(1, len(part.numbers) + 1)).tolist()
        begin = 0
        for number, end in zip(part.numbers, ends, strict=True):
            self._points[number] = NearPoint(driver[begin:end], distance_m[begin:end], pickup_s[begin:end])
            begin = end

    def _described(self, part: _Part) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The numbers of the part's drivers, in its order; those who are new are described."""
        numbers = self._numbers
        new = [place for place, name in enumerate(part.found.driver_ids) if name not in numbers]
        names = [part.found.driver_ids[place] for place in new]
        numbers.update(zip(names, range(len(numbers), len(numbers) + len(names)), strict=True))
        self._describe(names, part.records.take(new), part.now_ms)
        return np.array([numbers[name] for name in part.found.driver_ids], dtype=np.int64)

    def _describe(self, names: list[DriverId], records: Records, now_ms: int) -> None:
        drivers, of_mask = self._drivers, self._tags.of_mask
        drivers.driver_id.extend(names)
        drivers.lat.extend(records["lat"].tolist())
        drivers.lon.extend(records["lon"].tolist())
        drivers.age_s.extend(np.round(np.maximum(now_ms - records["fix_ms"], 0.0) / 1000.0, 1).tolist())
        drivers.vehicle_class.extend([each.decode(errors="replace") for each in records["vehicle_class"].tolist()])
        drivers.seats.extend(records["seats"].tolist())
        drivers.engaged.extend([name in self._engaged for name in names])
        drivers.tags.extend([of_mask(each) for each in records["tags"].tolist()])

    def answer(self, refusals: Refusals) -> NearbyMany:
        return NearbyMany(self._points, self._drivers, refusals.found)
