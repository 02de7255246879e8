"""A request for a plan as a matrix of costs: from its rows to a graph, and from what was decided to the answer.

Rides are rows and drivers columns. Where they have ids they are put in that order, so that the same rows and
columns in any order get the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from api.codec import BodyDecoder
from api.errors import Problem, invalid
from api.match_items import Bounds, Refusals
from api.schema import WireId
from api.schema_explanations import OTHER_TEXT
from api.schema_match import (
    MATRIX_TEXTS,
    DualsOut,
    ItemErrorOut,
    LeftOut,
    MatchRequest,
    MatrixAlternativeOut,
    MatrixNumbersOut,
    MatrixOut,
    MatrixPairOut,
    Price,
)
from matcher.explicit import DecidedGraph, GraphExplainer, Other
from matcher.graph import COST_MAX, CandidateGraph
from matcher.problem import UNMATCHED, Floats

_ROW: Final = BodyDecoder(list[float | None])
_PRICE: Final = BodyDecoder[float](Price)
_PRICES: Final = BodyDecoder(list[Raw])
_NO_PRICE: Final = f"must be a number from 0 to {COST_MAX:.0f}"
_NO_COST: Final = f"must be null or a number from {-COST_MAX:.0f} to {COST_MAX:.0f}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A request's sound rows and columns as a graph, and who is who in it."""

    graph: CandidateGraph
    ride_ids: list[str]
    driver_ids: list[str]
    refusals: Refusals


def read_matrix(request: MatchRequest, bounds: Bounds, *, is_msgpack: bool) -> Matrix:
    """Raises Problem 422 where the whole request is wrong."""
    assert request.costs is not UNSET
    bounds.check_rides(len(request.costs), "/costs")
    refusals = Refusals()
    ride_ids = _ids(request.ride_ids, len(request.costs), "/ride_ids", refusals)
    prices = _prices(request.unmatched, len(request.costs), refusals, is_msgpack=is_msgpack)
    rows, columns = _rows(request.costs, bounds, refusals, is_msgpack=is_msgpack)
    if columns is None:  # no row that says
        columns = 0 if request.driver_ids is UNSET else len(request.driver_ids)
    driver_ids = _ids(request.driver_ids, columns, "/driver_ids", refusals)
    sound = [name if place in rows and place in prices else None for place, name in enumerate(ride_ids)]
    rides = _in_order(sound, is_named=request.ride_ids is not UNSET)
    drivers = _in_order(driver_ids, is_named=request.driver_ids is not UNSET)
    costs = np.array([rows[place] for place in rides], dtype=np.float64).reshape(len(rides), columns)
    graph = _graph(costs[:, drivers], np.array([prices[place] for place in rides], dtype=np.float64))
    return Matrix(
        graph, [str(ride_ids[place]) for place in rides], [str(driver_ids[place]) for place in drivers], refusals
    )


def _in_order(ids: Sequence[str | None], *, is_named: bool) -> list[int]:
    """The places of those that can be used: by id, or as they stand where they were given no ids."""
    places = [place for place, name in enumerate(ids) if name is not None]
    return sorted(places, key=lambda place: str(ids[place])) if is_named else places


def _graph(costs: Floats, prices: Floats) -> CandidateGraph:
    """The pairs that are allowed, by (ride, driver)."""
    ride, driver = np.nonzero(~np.isnan(costs))
    n_rides, n_drivers = costs.shape
    return CandidateGraph(
        n_rides, n_drivers, ride.astype(np.int32), driver.astype(np.int32), costs[ride, driver], prices
    )


def _ids(said: list[Any] | UnsetType, count: int, pointer: str, refusals: Refusals) -> list[str | None]:
    """The ids; None of one that cannot be used. Where none are said, positions are. Raises Problem 422."""
    if said is UNSET:
        return [str(place) for place in range(count)]
    if len(said) != count:
        raise invalid(pointer, f"has {len(said)} ids for {count} {'rows' if pointer == '/ride_ids' else 'columns'}")
    ids: list[str | None] = []
    seen: set[str] = set()
    for place, each in enumerate(said):
        try:
            name = _id(each, seen)
        except Problem as problem:
            refusals.add(f"{pointer}/{place}", problem)
            ids.append(None)
        else:
            seen.add(name)
            ids.append(name)
    return ids


def _id(said: Any, seen: set[str]) -> str:
    try:
        name: str = msgspec.convert(said, WireId)
    except msgspec.ValidationError as error:
        raise invalid("", str(error)) from error
    if name in seen:
        raise invalid("", "stands before in the request", code="duplicate-id")
    return name


def _prices(said: Raw | UnsetType, count: int, refusals: Refusals, *, is_msgpack: bool) -> dict[int, float]:
    """Of each ride its price of being left, where that is one. Raises Problem 422."""
    assert said is not UNSET
    one = _price(said, is_msgpack=is_msgpack)
    if one is not None:
        return dict.fromkeys(range(count), one)
    try:
        many = _PRICES.decode(bytes(said), is_msgpack=is_msgpack)
    except Problem as problem:
        raise invalid("/unmatched", f"{_NO_PRICE}, or a list of one for each row") from problem
    if len(many) != count:
        raise invalid("/unmatched", f"has {len(many)} prices for {count} rows")
    prices = {}
    for place, each in enumerate(many):
        price = _price(each, is_msgpack=is_msgpack)
        if price is None:
            refusals.add(f"/unmatched/{place}", invalid("", _NO_PRICE))
        else:
            prices[place] = price
    return prices


def _price(said: Raw, *, is_msgpack: bool) -> float | None:
    """None for what is no price."""
    try:
        return _PRICE.decode(bytes(said), is_msgpack=is_msgpack)
    except Problem:
        return None


# Rows


def _rows(
    raws: Sequence[Raw], bounds: Bounds, refusals: Refusals, *, is_msgpack: bool
) -> tuple[dict[int, Floats], int | None]:
    """Of each sound row its costs, NaN where a pair is not allowed; how many columns there are, where a row says.

    Raises Problem 422.
    """
    rows: dict[int, Floats] = {}
    columns: int | None = None
    for place, raw in enumerate(raws):
        pointer = f"/costs/{place}"
        cells = _cells(raw, pointer, refusals, is_msgpack=is_msgpack)
        if cells is None:
            continue
        if columns is None:
            columns = len(cells)
            bounds.check_drivers(columns, pointer)
            bounds.check_cells(len(raws), columns)
        if len(cells) != columns:
            raise invalid(pointer, f"has {len(cells)} cells where a row before has {columns}")
        costs = np.array(cells, dtype=np.float64)
        wrong = _wrong_cell(costs, cells)
        if wrong is None:
            rows[place] = costs
        else:
            refusals.add(pointer, invalid(f"/{wrong}", _NO_COST))
    return rows, columns


def _cells(raw: Raw, pointer: str, refusals: Refusals, *, is_msgpack: bool) -> list[float | None] | None:
    """None for a row with a cell that is no number. Raises Problem 422 for what is no row."""
    try:
        return _ROW.decode(bytes(raw), is_msgpack=is_msgpack)
    except Problem as problem:
        if problem.errors and not problem.errors[0].pointer:
            raise invalid(pointer, problem.errors[0].detail) from problem
        refusals.add(pointer, problem)
        return None


def _wrong_cell(costs: Floats, cells: Sequence[float | None]) -> int | None:
    """The first cell that is neither null nor a cost."""
    beyond = np.flatnonzero(~(np.abs(costs) <= COST_MAX)).tolist()  # null has become NaN
    return next((place for place in beyond if cells[place] is not None), None)


# To the answer


def matrix_out(matrix: Matrix, decided: DecidedGraph, errors: list[ItemErrorOut], *, with_duals: bool) -> MatrixOut:
    explainer, assignment = GraphExplainer(decided), decided.assignment
    plan, unmatched = [], []
    for ride, driver in enumerate(assignment.driver_of.tolist()):
        if driver == UNMATCHED:
            reason, counts = explainer.unmatched(ride)
            text = MATRIX_TEXTS.get(reason, OTHER_TEXT)
            unmatched.append(LeftOut(matrix.ride_ids[ride], str(reason), text, counts))
        else:
            plan.append(_pair(matrix, explainer, ride, driver))
    duals = _duals(matrix, decided) if with_duals else UNSET
    return MatrixOut(plan, unmatched, errors, _numbers(decided, len(plan)), duals)


def _duals(matrix: Matrix, decided: DecidedGraph) -> DualsOut | None:
    """None where they prove nothing."""
    if not decided.certified:
        return None
    return DualsOut(
        rides=dict(zip(matrix.ride_ids, decided.assignment.u.tolist(), strict=True)),
        drivers=dict(zip(matrix.driver_ids, (decided.assignment.v + 0.0).tolist(), strict=True)),  # no -0.0
    )


def _pair(matrix: Matrix, explainer: GraphExplainer, ride: int, driver: int) -> MatrixPairOut:
    cost, others = explainer.matched(ride, driver)
    return MatrixPairOut(
        ride_id=matrix.ride_ids[ride],
        driver_id=matrix.driver_ids[driver],
        cost=cost,
        unmatched=float(matrix.graph.unmatched[ride]),
        alternatives=[_alternative(matrix, each) for each in others],
    )


def _alternative(matrix: Matrix, other: Other) -> MatrixAlternativeOut:
    return MatrixAlternativeOut(
        driver_id=matrix.driver_ids[other.driver],
        cost=other.cost,
        why=other.why,
        more=other.more,
        others_more=other.others_more,
        at_least=None if other.others_more is None else True,
        rival_ride_id=None if other.rival is None else matrix.ride_ids[other.rival],
    )


def _numbers(decided: DecidedGraph, matched: int) -> MatrixNumbersOut:
    graph, assignment = decided.graph, decided.assignment
    return MatrixNumbersOut(
        rides=graph.n_rides,
        drivers=graph.n_drivers,
        matched=matched,
        cost=assignment.cost,
        greedy_cost=assignment.greedy_cost,
        gain=assignment.greedy_cost - assignment.cost,
        gap=decided.gap,
        certified=decided.certified,
        scope=decided.scope,
        pairs=len(graph.ride),
        components=assignment.numbers.get("components", 0),
        rounds=0 if decided.is_greedy else 1,
        solve_s=round(decided.solve_s, 4),
    )
