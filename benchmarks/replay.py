"""Send a recorded city through a running service, as its real clients would.

Rides are asked for over HTTP at their recorded times, drivers sign on over
sockets when they were first seen. They drive in straight lines, or stand where
their recorded tracks say. With `--speed S` everything recorded runs S times
faster: the rides' deadlines are sent accordingly, and drivers drive S times
faster, so the service's limit of plausible speed must allow for it
(HEXHAIL_MAX_SPEED_MPS above driver speed times S).

Whether drivers are asked is the service's setting, not this command's: set
assign = "offer" for the market, in the TOML file of hexhail serve --config, or as
  HEXHAIL_MARKETS='[{"id": "new-york", "center_lat": 40.75, "center_lon": -73.98,
                     "radius_m": 30000, "assign": "offer", "offer_ttl_s": 2}]'
The market's own limits (offer_ttl_s, lost_grace_s, no_show_after_s, ...) are
seconds on the wall and do not run S times faster: set them S times shorter, but
leave an offer the seconds that a busy machine needs to show it to its driver.
Where drivers are assigned at once, the options about offers mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from api.client import DispatchClient, new_session
from benchmarks import recorded, running, summary
from benchmarks.arguments import not_negative, positive, positive_int, share
from benchmarks.choices import FleetOptions
from benchmarks.cities import Start, Track
from benchmarks.play import City, Play, PlayOptions
from benchmarks.recorded import RecordsError, Rejects
from benchmarks.riders import RiderOptions
from benchmarks.screen import shown
from config.secret import with_token_secret
from config.settings import ConfigError, Settings, load_settings
from geo.model import LatLng

#: Metres a second in a straight line. The recorded hour's road links were driven at 4.0 m/s on
#: average (their lengths and times summed, 4.4 in the median), and most are straight.
DRIVER_SPEED_MPS = 4.0
DEADLINE_S = 600.0
BOARDING_S = 20.0
#: Of what drivers and riders may do, as recorded seconds.
ANSWER_S = 5.0
LOST_S = 60.0
CANCEL_AFTER_S = 120.0
ONLINE_S = 1_800.0
REST_S = 300.0
#: However fast the record runs, a phone does not report more often than this in a run of thousands.
POSITION_INTERVAL_S_MIN = 2.0
TRACK_SEATS = 4
READY_S_MAX = 30.0
#: A ride request is repeated for so long: through restarts of the service, or of its database.
ANSWER_S_MAX = 180.0
EXIT_AUDIT_FAILED, EXIT_UNUSABLE = 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = summary.__doc__
    _configure_records(parser)
    _configure_run(parser)
    _configure_behaviour(parser)
    _configure_service(parser)


def _configure_records(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("records (CSV, gzipped or not; times ISO 8601 or unix seconds)")
    files.add_argument(
        "--rides", type=Path, required=True, metavar="FILE", help="columns " + ", ".join(recorded.RIDE_COLUMNS)
    )
    drivers = files.add_mutually_exclusive_group(required=True)
    drivers.add_argument("--drivers", type=Path, metavar="FILE", help="columns " + ", ".join(recorded.DRIVER_COLUMNS))
    drivers.add_argument(
        "--positions",
        type=Path,
        metavar="FILE",
        help="recorded tracks: columns " + ", ".join(recorded.POSITION_COLUMNS) + ", optionally occupied",
    )
    files.add_argument("--spread", action="store_true", help="spread times on a full minute over it (not of positions)")
    files.add_argument("--limit", type=positive_int, metavar="N", help="only the first N rides")
    files.add_argument("--seed", type=int, default=1, metavar="N", help="of everything that is drawn (1)")


def _configure_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("how it is played")
    run.add_argument("--speed", type=positive, default=1.0, help="how much faster than recorded (1)")
    run.add_argument(
        "--deadline-s", type=positive, default=DEADLINE_S, help="recorded seconds a ride may wait for a driver (600)"
    )
    run.add_argument(
        "--driver-speed-mps", type=positive, default=DRIVER_SPEED_MPS, help="straight-line speed as recorded (4.0)"
    )
    run.add_argument(
        "--boarding-s", type=not_negative, default=BOARDING_S, help="recorded seconds from arriving to starting (20)"
    )
    run.add_argument(
        "--position-interval",
        type=positive,
        metavar="S",
        help="seconds between a moving driver's positions (4/speed, at least 2)",
    )
    run.add_argument(
        "--parked-interval", type=positive, default=5.0, metavar="S", help="the same while it stands still (5)"
    )
    run.add_argument(
        "--follow", type=share, default=0.0, metavar="SHARE", help="of riders that read their ride's events (0)"
    )
    run.add_argument("--clients", type=positive_int, default=4, metavar="N", help="client identities that ask (4)")
    run.add_argument("--drain-s", type=not_negative, default=180.0, help="how long trips may run out at the end (180)")
    run.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _configure_behaviour(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what drivers and riders do (shares from 0 to 1, all 0 if not given; times in recorded seconds)"
    )

    def share_of(option: str, name: str, what: str) -> None:
        group.add_argument(option, dest=name, type=share, default=0.0, metavar="SHARE", help=what)

    def seconds(option: str, default: float, what: str) -> None:
        group.add_argument(option, type=not_negative, default=default, metavar="S", help=f"{what} ({default:g})")

    seconds("--accept-s", ANSWER_S, "until an offer is answered, on average")
    share_of("--decline", "decline_share", "of offers that are declined")
    share_of("--ignore", "ignore_share", "of offers that nobody answers; of the rest, all are accepted")
    share_of("--lose", "lose_share", "of offers, and of trips, during which the driver's network is lost")
    seconds("--lost-s", LOST_S, "that a lost network stays away, about")
    share_of("--cancel-drivers", "cancel_drivers", "of trips that the driver gives back on the way to the pickup")
    share_of("--no-show", "no_show_share", "of trips for whose pickup nobody comes")
    share_of("--cancel-riders", "cancel_riders", "of rides that the rider cancels")
    seconds("--cancel-after-s", CANCEL_AFTER_S, "within which a rider who cancels does so")
    share_of("--break", "break_share", "of drivers who go on a break now and then")
    seconds("--online-s", ONLINE_S, "between the breaks of such a driver, on average")
    seconds("--rest-s", REST_S, "that a break takes, about; who is paused for missed offers rests as long")


def _configure_service(parser: argparse.ArgumentParser) -> None:
    service = parser.add_argument_group("the service (the same settings as hexhail serve, from the environment)")
    service.add_argument("--url", help="where it listens (default: as HEXHAIL_HOST and HEXHAIL_PORT say)")
    service.add_argument("--config", metavar="FILE", help="its TOML file with settings (or HEXHAIL_CONFIG)")
    service.add_argument("--data-dir", type=Path, metavar="FOLDER", help="of an embedded service, for secret and audit")
    service.add_argument("--market", help="which market the drivers sign on to (default: the service's choice)")
    service.add_argument("--token-secret", help="signs the clients' tokens (better: HEXHAIL_TOKEN_SECRET)")
    service.add_argument("--database-url", help="for the audit (better: HEXHAIL_DATABASE_URL)")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    rejects = Rejects()
    try:
        if args.decline_share + args.ignore_share > 1.0:
            raise Unusable("--decline and --ignore are shares of the same offers: together they must not exceed 1")
        settings = _settings(args)
        city = read_city(args, rejects)
        return running.run(_replay(args, settings, city, rejects, console))
    except (RecordsError, Unusable, NotReady, summary.AuditFailed) as error:
        print(f"hexhail: {error}", file=sys.stderr)
        return EXIT_AUDIT_FAILED if isinstance(error, summary.AuditFailed) else EXIT_UNUSABLE
    except (KeyboardInterrupt, asyncio.CancelledError):
        return running.EXIT_INTERRUPTED


class Unusable(Exception):
    """What was asked for cannot be; the text says why."""


class NotReady(Exception):
    """There is no service to play to; the text says where it was looked for."""


def _settings(args: argparse.Namespace) -> Settings:
    """The service's settings, as far as they are told here: where it listens, its secret, its database."""
    given: dict[str, Any] = {}
    if args.token_secret:
        given["token_secret"] = args.token_secret
    if args.data_dir:
        given["data_dir"] = args.data_dir
    return load_settings(args.config, given)


def _secret(settings: Settings) -> bytes:
    """Never made here: a secret that the service does not know would be refused ride by ride."""
    if settings.token_secret is None and not (settings.data_dir / "token_secret").exists():
        where = (
            f"--token-secret, HEXHAIL_TOKEN_SECRET, or the token_secret in a service's --data-dir ({settings.data_dir})"
        )
        raise ConfigError([f"the secret that signs tokens is needed: {where}"])
    secret = with_token_secret(settings).token_secret
    assert secret is not None  # with_token_secret saw to it
    return secret.get_secret_value().encode()


def audited_url(args: argparse.Namespace, settings: Settings) -> str | None:
    """The database to audit: the one named, else an embedded service's file where these settings are the service's."""
    named: str | None = args.database_url or settings.database_url
    if named is not None:
        return named
    is_its_own = args.url is None or args.data_dir is not None
    return settings.store_url if is_its_own and (settings.data_dir / "hexhail.db").exists() else None


# The records


def read_city(args: argparse.Namespace, rejects: Rejects) -> City:
    """The city on a clock that starts at its first ride. Raises RecordsError."""
    rng = random.Random(f"{args.seed}/spread")
    wishes = recorded.read_rides(args.rides, rejects)
    if args.spread:
        wishes = recorded.spread_wishes(wishes, rng)
    wishes = wishes[: args.limit]
    if not wishes:
        raise RecordsError(f"{args.rides} has no ride that can be used ({rejects.total} rows rejected)")
    zero_s, end_s = wishes[0].at_s, wishes[-1].at_s
    tracks: list[Track] = []
    if args.positions is not None:
        tracks = recorded.rebase_tracks(recorded.read_positions(args.positions, rejects), zero_s)
        starts = track_starts(tracks, end_s - zero_s)
    else:
        starts = recorded.read_drivers(args.drivers, rejects)
        if args.spread:
            starts = recorded.spread_starts(starts, rng)
        starts = recorded.rebase_starts([start for start in starts if start.at_s <= end_s], zero_s)
    if not starts:
        raise RecordsError(f"{args.positions or args.drivers} has no driver seen before the last ride")
    return City(starts, iter(recorded.rebase_wishes(wishes, zero_s)), tracks, len(wishes))


def track_starts(tracks: Sequence[Track], end_s: float) -> list[Start]:
    """A driver signs on with its track's first point, or is there at the start where that lies before it;
    tracks that end before the start, or begin after `end_s`, take no part."""
    playing = [track for track in tracks if track.at_s[-1] >= 0.0 and track.at_s[0] <= end_s]
    starts = [
        Start(max(0.0, track.at_s[0]), track.driver_id, LatLng(track.lat[0], track.lon[0]), TRACK_SEATS)
        for track in playing
    ]
    return sorted(starts, key=lambda start: start.at_s)


# The run


async def _replay(args: argparse.Namespace, settings: Settings, city: City, rejects: Rejects, console: Console) -> int:
    url = args.url or f"http://{settings.host}:{settings.port}"
    secret, database_url = _secret(settings), audited_url(args, settings)
    async with new_session() as session:
        await _ready(url)
        play = Play(url, secret, city, play_options(args), session)
        _introduce(args, play, url, database_url, rejects, console)
        with running.signals(play.stop):
            await shown(play, console, title=f"replay of {args.rides.name}, {args.speed:g} times as fast")
    figures, findings = await asyncio.to_thread(summary.close_books, play, database_url)
    figures["rejected_rows"] = {
        "total": rejects.total,
        "reasons": dict(rejects.reasons.most_common()),
        "examples": rejects.examples,
    }
    summary.report(figures, as_json=args.json)
    return 0 if findings.holds else EXIT_AUDIT_FAILED


async def _ready(url: str) -> None:
    async with DispatchClient(url, "") as client:
        if not await client.wait_ready(READY_S_MAX):
            raise NotReady(f"no service is ready at {url} (--url); start one with: hexhail serve")


def _introduce(
    args: argparse.Namespace, play: Play, url: str, database_url: str | None, rejects: Rejects, console: Console
) -> None:
    said = [f"{play.city.rides_total} rides, {len(play.city.starts)} drivers -> {url}"]
    top_mps = args.driver_speed_mps * args.speed
    said.append(f"drivers drive {top_mps:g} m/s: the service's HEXHAIL_MAX_SPEED_MPS must be above that")
    if rejects.total:
        said.append(
            f"{rejects.total} rows rejected: " + ", ".join(f"{n} x {why}" for why, n in rejects.reasons.items())
        )
        said += rejects.examples
    if database_url is None:
        said.append("no --database-url: the audit is of the clients and the API only")
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def play_options(args: argparse.Namespace) -> PlayOptions:
    return PlayOptions(
        speed=args.speed,
        seed=args.seed,
        drain_s=args.drain_s,
        clients=args.clients,
        name="replay",
        fleet=_fleet_options(args),
        riders=RiderOptions(
            deadline_s=args.deadline_s / args.speed,
            follow_share=args.follow,
            cancel_share=args.cancel_riders,
            cancel_after_s=args.cancel_after_s / args.speed,
            answer_s=ANSWER_S_MAX,
        ),
    )


def _fleet_options(args: argparse.Namespace) -> FleetOptions:
    speed = args.speed
    return FleetOptions(
        speed_mps=args.driver_speed_mps * speed,
        position_interval_s=args.position_interval or max(POSITION_INTERVAL_S_MIN, 4.0 / speed),
        parked_interval_s=args.parked_interval,
        boarding_s=args.boarding_s / speed,
        answer_s=args.accept_s / speed,
        decline_share=args.decline_share,
        ignore_share=args.ignore_share,
        lose_share=args.lose_share,
        lost_s=args.lost_s / speed,
        cancel_share=args.cancel_drivers,
        no_show_share=args.no_show_share,
        break_share=args.break_share,
        online_s=args.online_s / speed,
        rest_s=args.rest_s / speed,
        market=args.market,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="hexhail replay", description=__doc__)
    configure(parser)
    try:
        return run(parser.parse_args())
    except ConfigError as error:
        for fault in error.faults:
            print(f"hexhail: {fault}", file=sys.stderr)
        return EXIT_UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
