"""Run the service with a simulated city: drivers over real sockets, riders over real HTTP.

The service is a child process on the embedded default, in a temporary data
folder. The city runs `--speed` times faster than life, so that trips end while
one watches. Ends by itself after `--seconds`, else on Ctrl-C: no more requests
then, trips run out for `--drain-s` at most, every ride's state is read, the
service stops, and the database is audited against what the clients saw.

With --offers drivers are asked before they get a ride: most accept, some decline,
some do not answer, and a few lose their network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from api.client import new_session
from benchmarks import running, summary
from benchmarks.arguments import not_negative, positive, positive_int
from benchmarks.choices import FleetOptions
from benchmarks.cities import SyntheticCity
from benchmarks.play import City, Play, PlayOptions
from benchmarks.riders import RiderOptions
from benchmarks.screen import shown
from benchmarks.service_child import NotStarted, ServiceChild, free_port
from config.markets import MarketSettings
from config.settings import Settings

DRIVER_SPEED_MPS = 7.0
TRIP_MEAN_M = 1_000.0
DEADLINE_S = 600.0
BOARDING_S = 20.0
RIDER_CANCEL_SHARE = 0.05
DRIVER_CANCEL_SHARE = 0.03
HTTP_SHARE = 0.1
WANDER_M = 400.0
#: With --offers, in the city's seconds as the other times; the service's limits are not below what a process can keep.
OFFER_TTL_S = 20.0
OFFER_TTL_S_MIN = 1.5
LOST_GRACE_S = 8.0
NO_SHOW_AFTER_S = 120.0
ANSWER_S = 4.0
LOST_S = 60.0
REST_S = 120.0
DECLINE_SHARE = 0.1
IGNORE_SHARE = 0.05
LOSE_SHARE = 0.02
NO_SHOW_SHARE = 0.02
EXIT_AUDIT_FAILED, EXIT_UNUSABLE = 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = summary.__doc__
    parser.add_argument("--seconds", type=positive, help="end by itself after so long (default: at Ctrl-C)")
    parser.add_argument("--drivers", type=positive_int, default=300, metavar="N", help="how many drivers (300)")
    parser.add_argument("--rides-per-minute", type=positive, default=240.0, metavar="N", help="ride requests (240)")
    parser.add_argument("--speed", type=positive, default=10.0, help="how much faster than life the city runs (10)")
    parser.add_argument("--offers", action="store_true", help="ask drivers, rather than assign them at once")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="draws another city (1)")
    parser.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    parser.add_argument("--drain-s", type=not_negative, default=8.0, help="how long trips may run out at the end (8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--keep", action="store_true", help="keep the data folder and say where it is")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    data_dir = Path(tempfile.mkdtemp(prefix="hexhail-demo-"))
    try:
        return running.run(_demo(args, console, data_dir))
    except NotStarted as error:
        print(f"hexhail: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    except summary.AuditFailed as error:
        print(f"hexhail: {error}", file=sys.stderr)
        return EXIT_AUDIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        return running.EXIT_INTERRUPTED
    finally:
        if args.keep:
            console.print(f"kept: {data_dir}", soft_wrap=True, highlight=False)
        else:
            shutil.rmtree(data_dir, ignore_errors=True)


async def _demo(args: argparse.Namespace, console: Console, data_dir: Path) -> int:
    secret = secrets.token_urlsafe(48)
    settings = {
        # Positions move `speed` times faster than life, and so do the limits for them.
        "HEXHAIL_MAX_SPEED_MPS": f"{max(70.0, 3 * DRIVER_SPEED_MPS * args.speed):g}",
        "HEXHAIL_ACK_INTERVAL_S": "1",  # the demo ends once its last positions have been acknowledged
        "HEXHAIL_SOCKETS_MAX": str(max(15_000, 2 * args.drivers)),
    }
    if args.offers:
        settings["HEXHAIL_MARKETS"] = json.dumps([_market_of_offers(args.speed)])
    service = ServiceChild(data_dir, args.port or free_port(), secret, settings)
    stopping = asyncio.Event()
    try:
        with running.signals(stopping.set):
            await service.start()
            console.print(f"hexhail serves at {service.url} (log: {service.log})", soft_wrap=True, highlight=False)
            play = await _play(args, service, secret, console, stopping)
            await service.stop()
            figures, findings = await asyncio.to_thread(summary.close_books, play, service.database_url)
    finally:
        service.kill()
    summary.report(figures, as_json=args.json)
    return 0 if findings.holds else EXIT_AUDIT_FAILED


async def _play(
    args: argparse.Namespace, service: ServiceChild, secret: str, console: Console, stopping: asyncio.Event
) -> Play:
    drawn = SyntheticCity.draw(args.seed, trip_mean_m=TRIP_MEAN_M)
    # Requests a minute are asked for by the clock on the wall, the city's runs faster.
    city = City(drawn.drivers(args.drivers), drawn.wishes(args.rides_per_minute / args.speed))
    async with new_session() as session:
        play = Play(service.url, secret.encode(), city, _options(args), session)
        passing_on = asyncio.create_task(_pass_on(stopping, play))
        asked = " who are asked" if args.offers else ""
        title = f"{args.drivers} drivers{asked}, {args.rides_per_minute:g} rides a minute, {args.speed:g} times life"
        try:
            await shown(play, console, title=title)
        finally:
            passing_on.cancel()
            await asyncio.gather(passing_on, return_exceptions=True)
    return play


async def _pass_on(stopping: asyncio.Event, play: Play) -> None:
    await stopping.wait()
    play.stop()


def _market_of_offers(speed: float) -> dict[str, Any]:
    """The market that is there by default, where drivers are asked."""
    market: MarketSettings = Settings.model_fields["markets"].get_default(call_default_factory=True)[0]
    return market.model_dump(exclude_unset=True) | {
        "assign": "offer",
        "offer_ttl_s": max(OFFER_TTL_S_MIN, OFFER_TTL_S / speed),
        "lost_grace_s": LOST_GRACE_S / speed,
        "no_show_after_s": NO_SHOW_AFTER_S / speed,
    }


def _options(args: argparse.Namespace) -> PlayOptions:
    speed = args.speed
    return PlayOptions(
        speed=speed,
        seed=args.seed,
        seconds=args.seconds,
        drain_s=args.drain_s,
        name="demo",
        fleet=FleetOptions(
            speed_mps=DRIVER_SPEED_MPS * speed,
            position_interval_s=max(0.5, 4.0 / speed),
            parked_interval_s=2.0,
            boarding_s=BOARDING_S / speed,
            answer_s=ANSWER_S / speed,
            decline_share=DECLINE_SHARE if args.offers else 0.0,
            ignore_share=IGNORE_SHARE if args.offers else 0.0,
            lose_share=LOSE_SHARE if args.offers else 0.0,
            lost_s=LOST_S / speed,
            cancel_share=DRIVER_CANCEL_SHARE,
            no_show_share=NO_SHOW_SHARE if args.offers else 0.0,
            rest_s=REST_S / speed,
            http_share=HTTP_SHARE,
            wander_m=WANDER_M,
        ),
        riders=RiderOptions(
            deadline_s=DEADLINE_S / speed,
            cancel_share=RIDER_CANCEL_SHARE,
            cancel_after_s=120.0 / speed,
            answer_s=15.0,
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="hexhail demo", description=__doc__)
    configure(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
