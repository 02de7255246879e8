"""The life of a ride: schedules, reasons' codes, offers that ran out, queues at places, webhooks, paths.

A frozen copy of the schema as it was, in parts that are made only where they do
not stand (see the first revision). New columns may be NULL or have a default, so
that a process of the version before still writes rows.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

revision = "0004"
down_revision = "0003"
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


_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    for table, columns in _columns().items():
        standing_columns = {each["name"] for each in sa.inspect(op.get_bind()).get_columns(table)}
        for column in columns:
            if column.name not in standing_columns:
                op.add_column(table, column)
    standing = set(sa.inspect(op.get_bind()).get_table_names())
    for make in (_matchers, _market_states, _zone_places, _webhooks, _webhook_deliveries, _trip_paths):
        name = make.__name__.removeprefix("_")
        table_parts = make()
        if name not in standing:
            op.create_table(name, *table_parts, **_INNODB)
    _index("rides_scheduled", "rides", "market", "state", "search_at_ms")
    _index("zone_places_in_turn", "zone_places", "market", "zone", "entered_at_ms")
    _index("webhook_deliveries_due", "webhook_deliveries", "due_at_ms")
    _index("webhook_deliveries_of_client", "webhook_deliveries", "client_id", "created_at_ms")


def _index(name: str, table: str, *columns: str) -> None:
    standing = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    if name not in standing:
        op.create_index(name, table, list(columns))


def _columns() -> dict[str, list[sa.Column[Any]]]:
    return {
        "rides": [
            sa.Column("pickup_at_ms", sa.BigInteger),
            sa.Column("search_at_ms", sa.BigInteger),
            sa.Column("first_deadline_at_ms", sa.BigInteger),
            sa.Column("first_dropoff", _json()),
            sa.Column("end_code", _word(32)),
        ],
        "trips": [
            sa.Column("accepted_at_ms", sa.BigInteger),
            sa.Column("release_at_ms", sa.BigInteger),
            sa.Column("end_code", _word(32)),
        ],
        "drivers": [
            sa.Column("version", sa.Integer, nullable=False, server_default="0"),
            sa.Column("status_code", _word(32)),
            sa.Column("missed_offers", sa.Integer, nullable=False, server_default="0"),
            sa.Column("lost_at_ms", sa.BigInteger),
        ],
        "ride_events": [sa.Column("code", _word(32)), sa.Column("actor", _word(16))],
    }


def _matchers() -> list[SchemaItem]:
    return [
        sa.Column("holder", _exact(255), primary_key=True),
        sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
    ]


def _market_states() -> list[SchemaItem]:
    return [
        sa.Column("market", _exact(64), primary_key=True),
        sa.Column("new_rides", _word(16)),
        sa.Column("reason", _reason()),
        sa.Column("changed_by", _exact(255)),
        sa.Column("changed_at_ms", sa.BigInteger, nullable=False),
    ]


def _zone_places() -> list[SchemaItem]:
    return [
        sa.Column("driver_id", _exact(255), primary_key=True),
        sa.Column("market", _exact(64), nullable=False),
        sa.Column("zone", _exact(32), nullable=False),
        sa.Column("entered_at_ms", sa.BigInteger, nullable=False),
        sa.Column("away_since_ms", sa.BigInteger),
        sa.Column("trip_id", _exact(32)),
    ]


def _webhooks() -> list[SchemaItem]:
    return [
        sa.Column("client_id", _exact(255), primary_key=True),
        sa.Column("url", _json(), nullable=False),
        sa.Column("secret", _exact(255), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    ]


def _webhook_deliveries() -> list[SchemaItem]:
    return [
        sa.Column("ride_id", _exact(32), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("client_id", _exact(255), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", _reason()),
    ]


def _trip_paths() -> list[SchemaItem]:
    return [
        sa.Column("trip_id", _exact(32), primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("distance_m", sa.Double, nullable=False),
        sa.Column("points", _json(), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    ]
