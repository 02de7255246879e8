"""A deployment's settings: command line over environment over TOML file over defaults.

`load_settings` is the way in; it raises `ConfigError` with one line a fault,
each saying where the value came from and what to do. Nothing is read at import.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from config.markets import MarketSettings, TagName

ENV_PREFIX = "HEXHAIL_"
#: Variables with our prefix that are no settings: the file's place, and what tests and benchmarks read.
OTHER_VARIABLES = ("HEXHAIL_CONFIG", "HEXHAIL_TEST_", "HEXHAIL_BENCH_")
SECRET_BYTES_MIN = 32
SECRET_FIELDS = frozenset({"token_secret", "redis_url", "database_url", "travel_url"})
#: Paths in a market that are looked up beside the file that names them.
MARKET_PATHS = ("geojson", "travel_links")

Role = Literal["all", "api", "matcher"]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class ConfigError(Exception):
    """The settings cannot be used; `faults` holds one line for each thing to put right."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _default_markets() -> tuple[MarketSettings, ...]:
    return (MarketSettings(id="new-york", center_lat=40.75, center_lon=-73.98, radius_m=30_000),)


class Settings(BaseSettings):
    """Everything an operator may set. The unit stands last in each name."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", env_ignore_empty=True, frozen=True)

    # Where it listens, what it runs
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080  # 0: any free port, printed at start
    role: Role = "all"
    workers: Annotated[int, Field(ge=1, le=256)] = 1

    # Where state lives; without URLs everything is embedded in one process
    redis_url: Annotated[str | None, Field(repr=False)] = None
    database_url: Annotated[str | None, Field(repr=False)] = None
    data_dir: Path = Path("hexhail-data")
    token_secret: SecretStr | None = None

    markets: Annotated[tuple[MarketSettings, ...], Field(max_length=1000)] = Field(default_factory=_default_markets)
    #: What a vehicle may offer and a ride ask for. A tag's place is its bit in the live index, 32 in all: append only,
    #: and the same in all processes. In the environment they are separated by commas.
    tags: Annotated[tuple[TagName, ...], Field(max_length=32), NoDecode] = (
        "wheelchair",
        "child_seat",
        "pets",
        "large_luggage",
    )

    # Positions
    flush_ms: Annotated[int, Field(ge=1, le=5_000)] = 100
    stale_after_s: Seconds = 30.0
    sweep_after_s: Seconds = 120.0
    ack_interval_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = (
        5.0  # a driver's socket hears that often
    )
    max_speed_mps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 70.0  # a jump above it is implausible
    cell_resolution: Annotated[int, Field(ge=0, le=15)] = 8

    # Limits (P10)
    max_body_bytes: Annotated[int, Field(ge=1024, le=16_777_216)] = 65_536
    max_frame_bytes: Annotated[int, Field(ge=512, le=1_048_576)] = 16_384
    max_metadata_bytes: Annotated[int, Field(ge=0, le=65_535)] = 4096
    sockets_max: Count = 15_000
    requests_waiting_max: Count = 2000

    # Limits of one request for a plan (P10)
    match_rides_max: Count = 5_000
    match_drivers_max: Count = 20_000
    match_cells_max: Annotated[int, Field(ge=1, le=5_000_000)] = 2_000_000  # of a matrix of costs
    match_body_bytes_max: Annotated[int, Field(ge=1024, le=134_217_728)] = 16_777_216
    match_s_max: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 5.0  # to solve it
    match_at_once: Annotated[int, Field(ge=1, le=64)] = 2  # under way or waiting in one process; beyond it 503

    # What is kept of each market's batches: records, and of how many of them the whole input
    batches_kept: Annotated[int, Field(ge=1, le=100_000)] = 500
    batch_inputs_kept: Annotated[int, Field(ge=0, le=100)] = 8

    # Webhooks: attempts before an event is given up, and events of one client that may wait (beyond it the oldest are)
    webhook_attempts_max: Annotated[int, Field(ge=1, le=100)] = 12
    webhook_backlog_max: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    webhook_private_hosts: bool = False  # may be sent to addresses of private networks and of this machine

    # Time-outs and pools
    drain_s: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 10.0
    lease_s: Annotated[float, Field(ge=1, le=300, allow_inf_nan=False)] = 5.0
    store_timeout_s: Annotated[float, Field(ge=0.1, le=300, allow_inf_nan=False)] = 5.0
    redis_timeout_s: Annotated[float, Field(ge=0.1, le=300, allow_inf_nan=False)] = 2.0
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 16

    # What it tells
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    access_log: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError("Kubernetes set this variable for a Service named hexhail: use enableServiceLinks: false")
        return value

    @field_validator("tags", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [each.strip() for each in value.split(",")] if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("must look like redis://host:6379/0 (or rediss://, unix://)")
        return url

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"mysql", "mysql+aiomysql", "mariadb", "mariadb+aiomysql"}:
            raise ValueError("must look like mysql://user:password@host:3306/database (unset: SQLite in data_dir)")
        if not parts.hostname or not parts.path.strip("/"):
            raise ValueError("names no host or no database: mysql://user:password@host:3306/database")
        return parts._replace(scheme="mysql+aiomysql").geturl()

    @field_validator("token_secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
            raise ValueError(f"is shorter than {SECRET_BYTES_MIN} bytes; make one with: openssl rand -hex 32")
        return secret

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.markets:
            raise ValueError("markets: at least one is needed")
        ids = [market.id for market in self.markets]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"markets: {', '.join(twice)} is named twice")
        self._check_tags()
        if self.sweep_after_s < self.stale_after_s:
            raise ValueError("sweep_after_s is below stale_after_s: drivers would be removed while still fresh")
        if self.flush_ms >= self.stale_after_s * 1000:
            raise ValueError("flush_ms is not below stale_after_s: every position would be stale when applied")
        if not self.is_shared:
            self._check_one_process()
        return self

    def _check_tags(self) -> None:
        if twice := sorted({name for name in self.tags if self.tags.count(name) > 1}):
            raise ValueError(f"tags: {', '.join(twice)} is named twice")
        for market in self.markets:
            if unknown := [name for name in market.tags if name not in self.tags]:
                known = ", ".join(self.tags) or "none"
                raise ValueError(f"market {market.id}: its tags {', '.join(unknown)} are not among the tags ({known})")

    def _check_one_process(self) -> None:
        """With either half embedded, one process holds the only copy of it."""
        missing = " and ".join(
            f"{ENV_PREFIX}{name.upper()}" for name in ("redis_url", "database_url") if getattr(self, name) is None
        )
        if self.role != "all":
            raise ValueError(f"role {self.role} needs {missing}: without it everything runs in one process")
        if self.workers > 1:
            raise ValueError(f"workers {self.workers} needs {missing}: without it everything runs in one process")

    def to_json(self) -> str:
        """Everything, secrets included, for a child process: hand it over a pipe, never as an argument."""
        values = self.model_dump(mode="json")
        if self.token_secret is not None:
            values["token_secret"] = self.token_secret.get_secret_value()
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The settings that `to_json` wrote, whatever the environment says."""
        return cls(**json.loads(text))

    @property
    def is_shared(self) -> bool:
        """Whether positions and rides live outside, so that several processes may serve them."""
        return self.redis_url is not None and self.database_url is not None

    @property
    def is_embedded(self) -> bool:
        """Whether nothing lives outside this process and its data folder."""
        return self.redis_url is None and self.database_url is None

    @property
    def store_url(self) -> str:
        """The store's SQLAlchemy URL: the given one, or the SQLite file in `data_dir`."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'hexhail.db'}"


def load_settings(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from `overrides` (by field), the environment and the TOML file at `path` or HEXHAIL_CONFIG.

    Raises ConfigError.
    """
    given = dict(overrides or {})
    file = path or os.environ.get("HEXHAIL_CONFIG") or None
    said = _read_toml(Path(file)) if file else {}
    faults = [f"{name}: no such setting" for name in _unknown_variables(os.environ)]
    try:
        environment = EnvSettingsSource(Settings)()
    except SettingsError:
        raise ConfigError([*faults, "HEXHAIL_MARKETS: is not JSON: a list of markets was expected"]) from None
    try:
        settings = Settings(**{**said, **environment, **given})
    except ValidationError as error:
        named = [_fault(each, given, environment, file) for each in error.errors(include_url=False)]
        raise ConfigError([*faults, *named]) from None
    if faults:
        raise ConfigError(faults)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None
    for market in _tables(said, "markets"):
        _look_up_beside(path, market, *MARKET_PATHS)
        for zone in _tables(market, "zones"):
            _look_up_beside(path, zone, "geojson")
    return said


def _tables(said: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The tables of this list; what is something else is refused later."""
    found = said.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _look_up_beside(path: Path, table: dict[str, Any], *names: str) -> None:
    for name in names:
        if isinstance(table.get(name), str):
            table[name] = str(path.parent / table[name])


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that name no setting: a misspelt one must not be silently ignored."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known and not _is_other(name))


def _is_other(name: str) -> bool:
    return any(name == other or (other.endswith("_") and name.startswith(other)) for other in OTHER_VARIABLES)


def _fault(error: ErrorDetails, given: Mapping[str, Any], environment: Mapping[str, Any], file: object) -> str:
    """One line: where the value was said, what is wrong, and what was said unless it is secret."""
    where = _name_of(error["loc"])
    words = "no such setting" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return words
    field = str(error["loc"][0])
    if field in given:
        where = "--" + where.replace("_", "-")
    elif field in environment:
        where = ENV_PREFIX + where.upper() if len(error["loc"]) == 1 else f"{ENV_PREFIX}{field.upper()}: {where}"
    elif file:
        where = f"{file}: {where}"
    value = error["input"]
    is_secret = not SECRET_FIELDS.isdisjoint(error["loc"])
    plain = not is_secret and isinstance(value, str | int | float) and error["type"] != "extra_forbidden"
    return f"{where}: {words}" + (f" (it says {value!r})" if plain else "")


def _name_of(loc: tuple[int | str, ...]) -> str:
    """`("markets", 0, "window_s")` as `markets[0].window_s`; the types that pydantic tried are left out."""
    name = ""
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "dict", "float", "int"}:
            name += f".{part}" if name else part
    return name


def without_password(url: str) -> str:
    """The URL as it may be shown: neither its password nor its query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()
