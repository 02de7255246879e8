"""The command line: `hexhail serve | migrate | token | batch`, and the commands that other packages add.

What a person did wrong is answered with one line a fault on standard error and
exit code 2, never with a traceback. Commands above the service (replay, demo)
are found by entry points, so that this package never imports them; each is a
module with `configure(parser)` and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast, get_args

from api.auth import Role as TokenRole
from api.auth import make_token
from config.secret import with_token_secret
from config.settings import ConfigError, Role, Settings, load_settings

EXIT_UNUSABLE = 2
COMMANDS = "hexhail.commands"
#: Settings that `serve` takes as options too; secrets and URLs are none: `ps` shows a command line to everybody.
SERVE_OPTIONS = ("host", "port", "role", "workers", "data_dir", "log_level", "log_format")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments).parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except ConfigError as error:
        return _refuse(error.faults)
    except BrokenPipeError:  # `hexhail ... | head`
        return 1
    except KeyboardInterrupt:  # before anything runs that ends in order
        return 128 + signal.SIGINT


def _refuse(faults: Iterable[str]) -> int:
    for fault in faults:
        print(f"hexhail: {fault}", file=sys.stderr)
    return EXIT_UNUSABLE


def version() -> str:
    """The installed version; running from a source tree that was never installed has none."""
    try:
        return metadata.version("hexhail")
    except metadata.PackageNotFoundError:
        return "0+source"


# ---- arguments ----


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hexhail", description="Real-time ride matching.")
    parser.add_argument("--version", action="version", version=f"hexhail {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_migrate(commands)
    _add_token(commands)
    _add_worker(commands)
    _add_batch(commands)
    for entry in sorted(metadata.entry_points(group=COMMANDS), key=lambda entry: entry.name):
        _add_entry(commands, entry, argv)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="run the service")
    serve.description = "Runs the service. Without HEXHAIL_REDIS_URL and HEXHAIL_DATABASE_URL all is in one process."
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=int, help="port to listen on; 0: any free one")
    serve.add_argument("--role", choices=get_args(Role), help="what to run: all (default), api or matcher")
    serve.add_argument("--workers", type=int, metavar="N", help="API processes")
    serve.add_argument("--data-dir", type=Path, metavar="FOLDER", help="where an embedded service keeps its data")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    serve.add_argument("--log-format", choices=("auto", "json", "console"))
    serve.add_argument("--migrate", action="store_true", help="bring an older database schema up to date first")
    serve.set_defaults(run=_serve)


def _add_migrate(commands: Any) -> None:
    migrate = commands.add_parser("migrate", help="bring the database's schema up to date")
    _add_config(migrate)
    migrate.add_argument("--data-dir", type=Path, metavar="FOLDER")
    migrate.set_defaults(run=_migrate)


def _add_token(commands: Any) -> None:
    token = commands.add_parser("token", help="make an access token")
    _add_config(token)
    token.add_argument("--data-dir", type=Path, metavar="FOLDER", help="the embedded service's, whose secret signs it")
    token.add_argument("--role", required=True, choices=[role.value for role in TokenRole])
    token.add_argument("--sub", required=True, metavar="NAME", help="whom it speaks for: a client's or driver's id")
    token.add_argument("--drivers", default="", metavar="a,b*", help="role fleet: the drivers it may speak for")
    token.add_argument("--ttl", type=float, default=3600.0, metavar="SECONDS", help="how long it is good (3600)")
    token.set_defaults(run=_token)


def _add_worker(commands: Any) -> None:
    worker = commands.add_parser("worker")  # without help: only the supervisor calls it
    worker.add_argument("--role", required=True, choices=get_args(Role))
    worker.add_argument("--index", type=int, default=0)  # tells the processes apart in `ps`
    worker.set_defaults(run=_worker)


def _add_batch(commands: Any) -> None:
    from api import batch_command

    batch = commands.add_parser("batch", help="look at a kept batch, and solve it again")
    batch.description = "A market's newest batches are kept with their whole input: to see why, and to check the proof."
    batch_command.configure(batch)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (or HEXHAIL_CONFIG)")


def _add_entry(commands: Any, entry: metadata.EntryPoint, argv: Sequence[str]) -> None:
    """Loads the module only where it is called or listed: serving must not depend on it."""
    called = bool(argv) and argv[0] == entry.name
    listed = not argv or argv[0] in {"-h", "--help"}
    if not called and not listed:
        commands.add_parser(entry.name)
        return
    module = entry.load()
    text = (module.__doc__ or "").strip().partition("\n")[0]
    parser = commands.add_parser(entry.name, help=text, description=module.__doc__)
    parser.set_defaults(run=module.run)
    module.configure(parser)


def _load(args: argparse.Namespace, names: Sequence[str]) -> Settings:
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    return load_settings(args.config, given)


# ---- commands ----


def _serve(args: argparse.Namespace) -> int:
    from api.launch import Unusable, serve

    settings = with_token_secret(_load(args, SERVE_OPTIONS))
    try:
        return serve(settings, migrate=args.migrate, version=version())
    except Unusable as error:
        return _refuse([str(error)])


def _worker(args: argparse.Namespace) -> int:
    from api.launch import Unusable, explained
    from api.worker import run_supervised

    try:
        with explained():
            return run_supervised(cast(Role, args.role))
    except Unusable as error:
        return _refuse([str(error)])


def _migrate(args: argparse.Namespace) -> int:
    from api.launch import Unusable, migrate

    try:
        print(asyncio.run(migrate(_load(args, ["data_dir"]))))
    except Unusable as error:
        return _refuse([str(error)])
    return 0


def _token(args: argparse.Namespace) -> int:
    settings = with_token_secret(_load(args, ["data_dir"]))
    drivers = [each for each in args.drivers.split(",") if each]
    role = TokenRole(args.role)
    if args.ttl <= 0:
        return _refuse(["--ttl must be more than 0 seconds"])
    if bool(drivers) != (role is TokenRole.FLEET):
        return _refuse(["--drivers goes with --role fleet, and a fleet's token needs it: --drivers 'd1,d2' or 'cab-*'"])
    assert settings.token_secret is not None  # with_token_secret saw to it
    secret = settings.token_secret.get_secret_value().encode()
    try:
        print(make_token(secret, args.sub, role, ttl_s=args.ttl, drivers=drivers))
    except ValueError as error:
        return _refuse([f"--sub: {error}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
