"""What a ride asks of the vehicle, and what a driver's vehicle offers: names, comma separated.

The columns have a default, so that a process of the version before, which knows
nothing of them, still writes rows. MySQL commits after each statement of DDL, so
a column is added only where it does not stand.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _word(size: int) -> sa.types.TypeEngine[str]:
    return sa.String(size).with_variant(mysql.VARCHAR(size, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def upgrade() -> None:
    for table in ("rides", "drivers"):
        _add(table, sa.Column("tags", _word(800), nullable=False, server_default=""))


def _add(table: str, column: sa.Column[str]) -> None:
    standing = {each["name"] for each in sa.inspect(op.get_bind()).get_columns(table)}
    if column.name not in standing:
        op.add_column(table, column)
