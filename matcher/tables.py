"""The tables, and the database's clock as an SQL expression.

Our internal time is whole milliseconds UTC in BIGINT columns. Ids, keys and
names from outside compare byte for byte: VARBINARY on MySQL and MariaDB (their
text collations pad, so that 'a' equals 'a '), TEXT with SQLite's BINARY
collation. `live`, `live_slot` and `pending` are NULL when they no longer
count, which is how a unique key binds only what is alive (P1).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

METADATA = sa.MetaData()
#: Longest id, key or name that comes from outside, in bytes of UTF-8.
NAME_BYTES_MAX = 255
#: Longest reason that is kept, in characters.
REASON_CHARS_MAX = 255
#: Longest list of tags, in ASCII with its commas: 32 names of 24 letters.
TAGS_CHARS_MAX = 800


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, whole milliseconds UTC, the same throughout a statement."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(now_ms, "mysql")
def _now_mysql(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    # No UNIX_TIMESTAMP: MariaDB's ends in 2038 and depends on the session's time zone.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)"


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    # SQLite keeps whole milliseconds and one 'now' a statement: both halves are exact and agree.
    return "(CAST(strftime('%s', 'now') AS INTEGER) * 1000 + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER))"


def _exact(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARBINARY(size), "mysql", "mariadb")


def _word(size: int) -> sa.types.TypeEngine[str]:
    """ASCII words: a state, a slot, an event's name, the names of tags."""
    return sa.String(size).with_variant(mysql.VARCHAR(size, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _reason() -> sa.types.TypeEngine[str]:
    size = REASON_CHARS_MAX
    text = mysql.VARCHAR(size, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(size).with_variant(text, "mysql", "mariadb")


def _json() -> sa.types.TypeEngine[str]:
    """JSON written with ASCII alone, so that no client's text can be unstorable."""
    return sa.Text().with_variant(mysql.TEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _hash() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def _blob() -> sa.types.TypeEngine[bytes]:
    """Up to 16 MiB on MySQL and MariaDB."""
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


_ID = _exact(32)
_NAME = _exact(NAME_BYTES_MAX)
_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

rides = sa.Table(
    "rides",
    METADATA,
    sa.Column("ride_id", _ID, primary_key=True),
    sa.Column("client_id", _NAME, nullable=False),
    sa.Column("market", _exact(64), nullable=False),
    sa.Column("state", _word(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("current_trip_id", _ID),  # the live trip, else the last one
    sa.Column("pickup_lat", sa.Double, nullable=False),
    sa.Column("pickup_lon", sa.Double, nullable=False),
    sa.Column("dropoff_lat", sa.Double),
    sa.Column("dropoff_lon", sa.Double),
    sa.Column("seats", sa.Integer, nullable=False),
    sa.Column("vehicle_class", _exact(32), nullable=False),
    sa.Column("metadata", _json(), nullable=False),
    sa.Column("requested_at_ms", sa.BigInteger, nullable=False),
    sa.Column("deadline_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger),
    sa.Column("end_reason", _reason()),
    sa.Column("idempotency_key", _NAME),  # NULL: none, or forgotten after a day
    sa.Column("key_until_ms", sa.BigInteger),
    sa.Column("body_hash", _hash(), nullable=False),
    sa.Column("tags", _word(TAGS_CHARS_MAX), nullable=False, server_default=""),  # sorted, comma separated
    sa.Column("pickup_at_ms", sa.BigInteger),  # of a scheduled ride
    sa.Column("search_at_ms", sa.BigInteger),  # when a scheduled ride takes its place in the queue
    sa.Column("first_deadline_at_ms", sa.BigInteger),  # as first answered, where it was put off since
    sa.Column("first_dropoff", _json()),  # the same of the destination: [lat, lon] or null; NULL: not changed
    sa.Column("end_code", _word(32)),
    sa.UniqueConstraint("client_id", "idempotency_key", name="rides_key"),  # P3
    sa.Index("rides_of_client", "client_id", "ride_id"),
    sa.Index("rides_open", "market", "state", "deadline_at_ms"),
    sa.Index("rides_scheduled", "market", "state", "search_at_ms"),
    sa.Index("rides_key_until", "key_until_ms"),
    **_INNODB,
)

trips = sa.Table(
    "trips",
    METADATA,
    sa.Column("trip_id", _ID, primary_key=True),
    sa.Column("ride_id", _ID, nullable=False),
    sa.Column("driver_id", _NAME, nullable=False),
    sa.Column("market", _exact(64), nullable=False),
    sa.Column("state", _word(16), nullable=False),
    sa.Column("live", sa.SmallInteger),  # 1 or NULL
    sa.Column("live_slot", _word(8)),  # 'now', 'next' or NULL
    sa.Column("pickup_s", sa.Double, nullable=False),
    sa.Column("distance_m", sa.Double, nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("now_since_ms", sa.BigInteger),  # since when it stands in `now`; for the audit
    sa.Column("arrived_at_ms", sa.BigInteger),
    sa.Column("started_at_ms", sa.BigInteger),
    sa.Column("ended_at_ms", sa.BigInteger),
    sa.Column("abandon_at_ms", sa.BigInteger, nullable=False),
    sa.Column("due_at_ms", sa.BigInteger, nullable=False),  # an offer's end, a late `next`'s, then abandon_at_ms
    sa.Column("end_reason", _reason()),
    sa.Column("decision", _json(), nullable=False),
    sa.Column("accepted_at_ms", sa.BigInteger),
    sa.Column("release_at_ms", sa.BigInteger),  # when it is released if it is still in `next`
    sa.Column("end_code", _word(32)),
    sa.UniqueConstraint("driver_id", "live_slot", name="trips_driver_slot"),  # P1
    sa.UniqueConstraint("ride_id", "live", name="trips_ride_live"),  # P1
    sa.Index("trips_live", "live", "due_at_ms", "driver_id"),
    sa.Index("trips_matched", "market", "matched_at_ms"),
    **_INNODB,
)

drivers = sa.Table(
    "drivers",
    METADATA,
    sa.Column("driver_id", _NAME, primary_key=True),
    sa.Column("status", _word(16), nullable=False),
    sa.Column("vehicle_class", _exact(32), nullable=False),
    sa.Column("seats", sa.Integer, nullable=False),
    sa.Column("market", _exact(64)),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    sa.Column("tags", _word(TAGS_CHARS_MAX), nullable=False, server_default=""),  # sorted, comma separated
    sa.Column("version", sa.Integer, nullable=False, server_default="0"),  # grows with every change of the row
    sa.Column("status_code", _word(32)),  # why the service itself changed the status
    sa.Column("missed_offers", sa.Integer, nullable=False, server_default="0"),  # in a row, run out unanswered
    sa.Column("lost_at_ms", sa.BigInteger),  # since when the socket is lost that an offer was shown on
    **_INNODB,
)

ride_events = sa.Table(
    "ride_events",
    METADATA,
    sa.Column("ride_id", _ID, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("market", _exact(64), nullable=False),
    sa.Column("type", _word(24), nullable=False),
    sa.Column("state", _word(16), nullable=False),
    sa.Column("driver_id", _NAME),
    sa.Column("trip_id", _ID),
    sa.Column("reason", _reason()),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("pending", sa.SmallInteger),  # 1 until announced, then NULL
    sa.Column("code", _word(32)),
    sa.Column("actor", _word(16)),
    sa.Index("ride_events_pending", "pending", "at_ms"),
    **_INNODB,
)

market_leases = sa.Table(
    "market_leases",
    METADATA,
    sa.Column("market", _exact(64), primary_key=True),
    sa.Column("holder", _NAME, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    **_INNODB,
)

batches = sa.Table(
    "batches",
    METADATA,
    sa.Column("market", _exact(64), primary_key=True),
    sa.Column("batch_id", _ID, primary_key=True),  # ordered by time
    sa.Column("decided_at_ms", sa.BigInteger, nullable=False),
    sa.Column("summary", _json(), nullable=False),
    sa.Column("input", _blob()),  # deflated; NULL: not kept
    sa.Column("input_bytes", sa.Integer),  # before it was deflated, so that a list need not read it
    sa.Index("batches_newest", "batch_id"),
    sa.Index("batches_inputs", "market", "input_bytes"),
    **_INNODB,
)

ride_waits = sa.Table(
    "ride_waits",
    METADATA,
    sa.Column("ride_id", _ID, primary_key=True),
    sa.Column("market", _exact(64), nullable=False),
    sa.Column("batch_id", _ID, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("reason", _word(32), nullable=False),
    sa.Column("detail", _json(), nullable=False),
    **_INNODB,
)

#: One row a matcher process that lives, so that each knows its fair share of the markets.
matchers = sa.Table(
    "matchers",
    METADATA,
    sa.Column("holder", _NAME, primary_key=True),
    sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
    **_INNODB,
)

#: What an operator said of a market; no row: it is open.
market_states = sa.Table(
    "market_states",
    METADATA,
    sa.Column("market", _exact(64), primary_key=True),
    sa.Column("new_rides", _word(16)),  # while paused, 'refuse' or 'queue'; NULL: open
    sa.Column("reason", _reason()),
    sa.Column("changed_by", _NAME),
    sa.Column("changed_at_ms", sa.BigInteger, nullable=False),
    **_INNODB,
)

#: Who waits at a place, first in first out by (entered_at_ms, driver_id); a driver waits at one place at most.
zone_places = sa.Table(
    "zone_places",
    METADATA,
    sa.Column("driver_id", _NAME, primary_key=True),
    sa.Column("market", _exact(64), nullable=False),
    sa.Column("zone", _exact(32), nullable=False),
    sa.Column("entered_at_ms", sa.BigInteger, nullable=False),
    sa.Column("away_since_ms", sa.BigInteger),  # not seen in the zone since; NULL: it is there
    sa.Column("trip_id", _ID),  # the trip it left for, for which its place is kept
    sa.Index("zone_places_in_turn", "market", "zone", "entered_at_ms"),
    **_INNODB,
)

#: Where a client wants its rides' events sent.
webhooks = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("client_id", _NAME, primary_key=True),
    sa.Column("url", _json(), nullable=False),
    sa.Column("secret", _NAME, nullable=False),  # signs the deliveries
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    **_INNODB,
)

#: Events on their way to a client, and those given up; a row goes when it was delivered.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    METADATA,
    sa.Column("ride_id", _ID, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("client_id", _NAME, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("due_at_ms", sa.BigInteger),  # the next attempt; NULL: given up
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("last_error", _reason()),
    sa.Index("webhook_deliveries_due", "due_at_ms"),
    sa.Index("webhook_deliveries_of_client", "client_id", "created_at_ms"),
    **_INNODB,
)

#: Where a trip's driver drove, in parts as the driver's session wrote them.
trip_paths = sa.Table(
    "trip_paths",
    METADATA,
    sa.Column("trip_id", _ID, primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("distance_m", sa.Double, nullable=False),
    sa.Column("points", _json(), nullable=False),  # [[lat, lon], ...], thinned
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    **_INNODB,
)
