"""Values reach a real server as what they are, and come back so."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
import sqlalchemy as sa

from matcher.connections import MySqlOpener, parse_url
from matcher.mysql_session import MySqlSession
from matcher.sessions import Disconnected, Unstorable, row_of, rows_of
from matcher.statement import Statement

TEXTS = [
    "",
    "plain",
    "it's",
    'a "b"',
    "back\\slash",
    "\\'",
    "%s %d %%",
    "\0\n\r\x1a\t",
    "Zürich 🚕",
    "'; DROP TABLE t; --",
]
NUMBERS = [0, -1, 2**63 - 1, -(2**63), True, 0.1, -1.5e-300, 1e22, 123456789.12345679, 40.30000000000001]

ECHO = Statement(sa.select(sa.bindparam("value"), sa.bindparam("other")))
SUM = Statement(sa.select(sa.func.sum(sa.literal_column("1")), sa.func.sum(sa.literal_column("NULL"))))


async def opened(url: str) -> tuple[MySqlOpener, MySqlSession]:
    opener = MySqlOpener(parse_url(url), wait_timeout_s=30.0, autocommit=True)
    return opener, MySqlSession(await opener.open(), settling=False)


async def test_every_value_comes_back_as_it_was_sent(mysql_database: str) -> None:
    opener, session = await opened(mysql_database)
    for value in TEXTS:
        assert await row_of(session, ECHO(value=value, other=None)) == [value, None]
    for number in NUMBERS:
        row = await row_of(session, ECHO(value=number, other="x"))
        assert row is not None
        assert row[0] == number
        assert type(row[0]) is (int if isinstance(number, int) else float)
    for data in (b"", bytes(range(256)), b"'\\'" * 3, bytes(range(256)) * 300):
        assert await row_of(session, ECHO(value=data, other="x")) == [data, "x"]
    assert await row_of(session, SUM()) == [Decimal(1), None]
    opener.discard(session._wire)
    await opener.finish()


@pytest.mark.parametrize("value", ["\ud800", math.nan, math.inf])
async def test_what_no_column_can_hold_is_unstorable_and_leaves_the_connection_in_step(
    mysql_database: str, value: object
) -> None:
    opener, session = await opened(mysql_database)
    with pytest.raises(Unstorable):
        await rows_of(session, ECHO(value=value, other=1))
    assert await row_of(session, ECHO(value=1, other=2)) == [1, 2]
    opener.discard(session._wire)
    await opener.finish()


async def test_a_closed_connection_says_that_it_is_lost(mysql_database: str) -> None:
    opener, session = await opened(mysql_database)
    opener.retire(session._wire)
    with pytest.raises(Disconnected):
        await rows_of(session, ECHO(value=1, other=2))
    await opener.finish()
