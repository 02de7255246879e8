"""What batches came to, why rides wait, and the index that a driver's history is read by.

A frozen copy of the schema as it was, in parts that are made only where they do
not stand (see the first revision).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _exact(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARBINARY(size), "mysql", "mariadb")


def _word(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARCHAR(size, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _json() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mysql.TEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def _blob() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    standing = set(sa.inspect(op.get_bind()).get_table_names())
    for make in (_batches, _ride_waits):
        name = make.__name__.removeprefix("_")
        table = make()
        if name not in standing:
            op.create_table(name, *table, **_INNODB)
    _index("batches_newest", "batches", "batch_id")
    _index("batches_inputs", "batches", "market", "input_bytes")
    _index("trips_matched", "trips", "market", "matched_at_ms")


def _index(name: str, table: str, *columns: str) -> None:
    standing = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    if name not in standing:
        op.create_index(name, table, list(columns))


def _batches() -> list[SchemaItem]:
    return [
        sa.Column("market", _exact(64), primary_key=True),
        sa.Column("batch_id", _exact(32), primary_key=True),
        sa.Column("decided_at_ms", sa.BigInteger, nullable=False),
        sa.Column("summary", _json(), nullable=False),
        sa.Column("input", _blob()),
        sa.Column("input_bytes", sa.Integer),
    ]


def _ride_waits() -> list[SchemaItem]:
    return [
        sa.Column("ride_id", _exact(32), primary_key=True),
        sa.Column("market", _exact(64), nullable=False),
        sa.Column("batch_id", _exact(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", _word(32), nullable=False),
        sa.Column("detail", _json(), nullable=False),
    ]
