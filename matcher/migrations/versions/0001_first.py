"""Rides, trips, drivers, their events, and the leases of markets.

A frozen copy of the schema as it was: later revisions change the tables, not
this. MySQL commits after each statement of DDL, so every part is made only
where it does not stand: a migration that died half way is finished by the next.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _exact(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARBINARY(size), "mysql", "mariadb")


def _word(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARCHAR(size, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _reason() -> sa.types.TypeEngine[str]:
    text = mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(255).with_variant(text, "mysql", "mariadb")


def _json() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mysql.TEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _hash() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    standing = set(sa.inspect(op.get_bind()).get_table_names())
    for make in (_rides, _trips, _drivers, _ride_events, _market_leases):
        name = make.__name__.removeprefix("_")
        table = make()
        if name not in standing:
            op.create_table(name, *table, **_INNODB)
    _index("rides_of_client", "rides", "client_id", "ride_id")
    _index("rides_open", "rides", "market", "state", "deadline_at_ms")
    _index("rides_key_until", "rides", "key_until_ms")
    _index("trips_live", "trips", "live", "due_at_ms", "driver_id")
    _index("ride_events_pending", "ride_events", "pending", "at_ms")


def _index(name: str, table: str, *columns: str) -> None:
    standing = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    if name not in standing:
        op.create_index(name, table, list(columns))


def _rides() -> list[SchemaItem]:
    return [
        sa.Column("ride_id", _exact(32), primary_key=True),
        sa.Column("client_id", _exact(255), nullable=False),
        sa.Column("market", _exact(64), nullable=False),
        sa.Column("state", _word(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("current_trip_id", _exact(32)),
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
        sa.Column("idempotency_key", _exact(255)),
        sa.Column("key_until_ms", sa.BigInteger),
        sa.Column("body_hash", _hash(), nullable=False),
        sa.UniqueConstraint("client_id", "idempotency_key", name="rides_key"),
    ]


def _trips() -> list[SchemaItem]:
    return [
        sa.Column("trip_id", _exact(32), primary_key=True),
        sa.Column("ride_id", _exact(32), nullable=False),
        sa.Column("driver_id", _exact(255), nullable=False),
        sa.Column("market", _exact(64), nullable=False),
        sa.Column("state", _word(16), nullable=False),
        sa.Column("live", sa.SmallInteger),
        sa.Column("live_slot", _word(8)),
        sa.Column("pickup_s", sa.Double, nullable=False),
        sa.Column("distance_m", sa.Double, nullable=False),
        sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
        sa.Column("now_since_ms", sa.BigInteger),
        sa.Column("arrived_at_ms", sa.BigInteger),
        sa.Column("started_at_ms", sa.BigInteger),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("abandon_at_ms", sa.BigInteger, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger, nullable=False),
        sa.Column("end_reason", _reason()),
        sa.Column("decision", _json(), nullable=False),
        sa.UniqueConstraint("driver_id", "live_slot", name="trips_driver_slot"),
        sa.UniqueConstraint("ride_id", "live", name="trips_ride_live"),
    ]


def _drivers() -> list[SchemaItem]:
    return [
        sa.Column("driver_id", _exact(255), primary_key=True),
        sa.Column("status", _word(16), nullable=False),
        sa.Column("vehicle_class", _exact(32), nullable=False),
        sa.Column("seats", sa.Integer, nullable=False),
        sa.Column("market", _exact(64)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    ]


def _ride_events() -> list[SchemaItem]:
    return [
        sa.Column("ride_id", _exact(32), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("market", _exact(64), nullable=False),
        sa.Column("type", _word(24), nullable=False),
        sa.Column("state", _word(16), nullable=False),
        sa.Column("driver_id", _exact(255)),
        sa.Column("trip_id", _exact(32)),
        sa.Column("reason", _reason()),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("pending", sa.SmallInteger),
    ]


def _market_leases() -> list[SchemaItem]:
    return [
        sa.Column("market", _exact(64), primary_key=True),
        sa.Column("holder", _exact(255), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    ]
