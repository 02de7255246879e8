"""`hexhail batch`: fetch a kept batch, look at it, solve it again and check its proof.

A batch's file is what `GET /v1/batches/{id}/input` serves. Whatever reads or solves one is imported when it is asked
for: no other command waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

    from matcher.replay import Recorded, Replay

EXIT_DIFFERS = 1
EXIT_UNUSABLE = 2
FILE_BYTES_MAX = 64 * 2**20
#: The service keeps none that are larger than some megabytes; a minute is long for that.
FETCH_S_MAX = 60.0
TOKEN_S = 60.0
_BATCH_ID = re.compile(r"b_[0-9A-HJKMNP-TV-Z]{26}")
#: Ids that are told where one was asked for that is not there.
IDS_TOLD = 3


class _Unusable(Exception):
    """It cannot be done with what was given; the message says why, and what to do."""


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    replay = commands.add_parser(
        "replay", help="solve a kept batch again, without a limit of time, and check its proof"
    )
    replay.description = (
        "Exit code 0: the same plan, or one no worse than a plan that was not proven; 1: not; 2: no file."
    )
    _add_file(replay)
    replay.add_argument(
        "--explain", metavar="RIDE_ID", help="say what each driver would have cost this ride, and why not"
    )
    replay.set_defaults(run=_replay)
    show = commands.add_parser("show", help="what a kept batch holds, without solving it")
    _add_file(show)
    show.set_defaults(run=_show)
    fetch = commands.add_parser("fetch", help="download a kept batch from a running service")
    fetch.add_argument("batch_id", metavar="ID", help="as GET /v1/batches lists it")
    fetch.add_argument("--url", help="where the service listens (default: as HEXHAIL_HOST and HEXHAIL_PORT say)")
    fetch.add_argument("--token", help="an admin's; unset: signed with the secret of the settings")
    fetch.add_argument("--config", metavar="FILE", help="TOML file with settings (or HEXHAIL_CONFIG)")
    fetch.add_argument("--data-dir", type=Path, metavar="FOLDER", help="an embedded service's, for its secret")
    fetch.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to put it (ID.msgpack)")
    fetch.set_defaults(run=_fetch)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what GET /v1/batches/{id}/input serves")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _refuse(error: _Unusable) -> int:
    print(f"hexhail: {error}", file=sys.stderr)
    return EXIT_UNUSABLE


def _read(path: Path) -> Recorded:
    """Raises _Unusable."""
    from matcher.problem import BadProblem
    from matcher.replay import read_recorded

    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise _Unusable(f"{path} has more than {FILE_BYTES_MAX} bytes: no kept batch is that large")
        return read_recorded(path.read_bytes())
    except OSError as error:
        raise _Unusable(f"{path} cannot be read: {error.strerror}") from error
    except BadProblem as error:
        raise _Unusable(f"{path}: {error} (hexhail batch fetch ID downloads one)") from error


# ---- show ----


def _show(args: argparse.Namespace) -> int:
    try:
        held = _held(_read(args.file))
    except _Unusable as error:
        return _refuse(error)
    print(json.dumps(held) if args.json else _table(held))
    return 0


def _held(recorded: Recorded) -> dict[str, Any]:
    record, problem = recorded.record, recorded.problem
    kinds, driver_kinds = problem.extra_s.shape
    return {
        "batch_id": record.batch_id,
        "market": record.market,
        "rides": problem.n_rides,
        "drivers": problem.n_drivers,
        "matched": int((recorded.driver_of >= 0).sum()),
        "ride_kinds": kinds,
        "driver_kinds": driver_kinds,
        "refused_pairs": len(problem.barred_ride),
        "way_s_per_m": problem.s_per_m,
        "reach_m": problem.reach_m.min() if kinds else None,
        "reach_m_most": problem.reach_m.max() if kinds else None,
        "reach_s": problem.reach_s.min() if kinds else None,
        "reach_s_most": problem.reach_s.max() if kinds else None,
        "recorded_ways": len(record.way_s) // 8 if problem.has_ways else None,
        "recorded_cost_s": round(record.cost_s, 3),
        "recorded_greedy_cost_s": record.facts.get("greedy_cost_s"),
        "recorded_gap_s": round(recorded.gap_s, 3),
        "recorded_certified": recorded.certified,
        "recorded_scope": record.facts.get("scope"),
    }


def _table(rows: dict[str, Any]) -> str:
    width = max(len(name) for name in rows)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_word(value)}" for name, value in rows.items())


def _word(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


# ---- replay ----


def _replay(args: argparse.Namespace) -> int:
    from matcher.replay import checked, explain, solve_again
    from matcher.solver_child import warm_up

    try:
        recorded = _read(args.file)
        ride = None if args.explain is None else _ride_of(recorded, args.explain)
    except _Unusable as error:
        return _refuse(error)
    warm_up()  # what is compiled counts as no time of solving
    began_s = time.perf_counter()
    solution = solve_again(recorded)
    seconds = time.perf_counter() - began_s
    replay = checked(recorded, solution)
    told = _result(replay, seconds)
    explanation = None if ride is None else explain(replay, ride)
    if args.json:
        print(json.dumps(told if explanation is None else told | {"explanation": explanation}))
    else:
        print(_table(told) if explanation is None else f"{_table(told)}\n\n{_explained(explanation)}")
    return 0 if replay.agrees else EXIT_DIFFERS


def _ride_of(recorded: Recorded, ride_id: str) -> int:
    ids = recorded.record.ride_ids
    if ride_id not in ids:
        some = ", ".join(ids[:IDS_TOLD])
        raise _Unusable(f"--explain: the batch has no ride {ride_id}; its {len(ids)} rides begin with {some or 'none'}")
    return ids.index(ride_id)


def _result(replay: Replay, seconds: float) -> dict[str, Any]:
    recorded, solution = replay.recorded, replay.solution
    return {
        "batch_id": recorded.record.batch_id,
        "market": recorded.record.market,
        "rides": recorded.problem.n_rides,
        "drivers": recorded.problem.n_drivers,
        "same_plan": replay.same_plan,
        "rides_that_differ": int((solution.driver_of != recorded.driver_of).sum()),
        "recorded_cost_s": round(recorded.record.cost_s, 3),
        "recorded_certified": recorded.certified,
        "cost_s": round(solution.cost_s, 3),
        "greedy_cost_s": None if solution.greedy_s is None else round(solution.greedy_s, 3),
        "certified": solution.certified,
        "checked": replay.fault is None and replay.recorded_fault is None,
        "fault": replay.fault or replay.recorded_fault,
        "seconds": round(seconds, 4),
    }


_WHY = {
    "chosen": "chosen",
    "equal": "costs the ride the same",
    "dearer_for_this_ride": "{more:,.3f} s dearer for this ride",
    "dearer_for_the_city": "{less:,.3f} s cheaper for this ride, at least {others:,.3f} s dearer for the others",
    "equal_for_the_city": "{less:,.3f} s cheaper for this ride, as much dearer for the others",
    "no_cheaper_for_the_city": "{less:,.3f} s cheaper for this ride, at least as much dearer for the others",
    "dearer_than_leaving": "{more:,.3f} s dearer than leaving the ride",
}


def _explained(told: dict[str, Any]) -> str:
    """The ride's candidates as lines, each with its costs by term."""
    got = "nobody" if told["driver_id"] is None else f"driver {told['driver_id']}"
    lines = [
        f"ride {told['ride_id']}: {got} at {told['cost_s']:,.3f} s",
        f"leaving it costs {told['price_of_leaving_s']:,.3f} s",
        f"{told['allowed']} drivers are allowed, {told['refused']} have refused it before",
    ]
    if told["recorded_driver_id"] != told["driver_id"]:
        lines.append(f"recorded was: {told['recorded_driver_id'] or 'nobody'}")
    return "\n".join([*lines, *(_line(each) for each in told["candidates"])])


def _line(candidate: dict[str, Any]) -> str:
    terms = ", ".join(f"{name.replace('_', ' ')} {value:,.3f}" for name, value in candidate["terms"].items())
    more_s, others_s = candidate["more_s"], candidate["others_more_s"] or 0.0
    why = _WHY[candidate["why"]].format(more=more_s, less=-more_s, others=others_s)
    rival = "" if candidate["rival_ride_id"] is None else f"; serves {candidate['rival_ride_id']}"
    return f"  {candidate['driver_id']:<20} {candidate['cost_s']:>12,.3f} s  ({terms})  {why}{rival}"


# ---- fetch ----


def _fetch(args: argparse.Namespace) -> int:
    if not _BATCH_ID.fullmatch(args.batch_id):
        return _refuse(_Unusable(f"{args.batch_id!r} is no batch's id: GET /v1/batches lists them"))
    path = args.output or Path(f"{args.batch_id}.msgpack")
    try:
        url, token = _where(args)
        data = asyncio.run(_download(url, token, args.batch_id))
        path.write_bytes(data)
    except OSError as error:
        return _refuse(_Unusable(f"{path} cannot be written: {error.strerror}"))
    except _Unusable as error:
        return _refuse(error)
    print(f"{path}: {len(data)} bytes; hexhail batch replay {path}")
    return 0


def _where(args: argparse.Namespace) -> tuple[str, str]:
    """The service's address and an admin's token: as given, else as the settings say. Raises ConfigError."""
    if args.url and args.token:
        return args.url.rstrip("/"), args.token
    from api.auth import Role, make_token
    from config.secret import with_token_secret
    from config.settings import load_settings

    settings = load_settings(args.config, {} if args.data_dir is None else {"data_dir": args.data_dir})
    url = args.url or f"http://{settings.host}:{settings.port}"
    if args.token:
        return url.rstrip("/"), args.token
    secret = with_token_secret(settings).token_secret
    assert secret is not None  # with_token_secret saw to it
    return url.rstrip("/"), make_token(secret.get_secret_value().encode(), "batch-fetch", Role.ADMIN, ttl_s=TOKEN_S)


async def _download(url: str, token: str, batch_id: str) -> bytes:
    """Raises _Unusable."""
    import aiohttp

    whole, headers = f"{url}/v1/batches/{batch_id}/input", {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_S_MAX)) as session,
            session.get(whole, headers=headers) as response,
        ):
            return await _body(response)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # an address that is none is a ValueError
        raise _Unusable(f"{url}: no answer: {str(error) or type(error).__name__}") from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    from api.client_http import refusal_of

    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > FILE_BYTES_MAX:
            raise _Unusable(f"the answer has more than {FILE_BYTES_MAX} bytes: no kept batch is that large")
    if response.status != HTTPStatus.OK:
        raise _Unusable(f"the service refused: {refusal_of(response.status, response.headers, bytes(data))}")
    return bytes(data)
