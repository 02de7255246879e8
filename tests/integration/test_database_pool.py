"""How the store's connections are lent out, on a real server."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

from matcher.connections import MySqlOpener, parse_url
from matcher.database import Database
from matcher.sessions import Session, rows_of
from matcher.statement import Statement

WHO_AM_I = Statement(sa.select(sa.func.connection_id()))


async def number_of(session: Session) -> int:
    """The server's number of the connection."""
    [(number,)] = await rows_of(session, WHO_AM_I())
    return int(number)


async def test_idle_connections_are_used_in_turn(mysql_database: str) -> None:
    """The one returned last would leave the others idle until the server ends them, and every burst would open anew."""
    database = Database(mysql_database, pool_size=4)
    together = asyncio.Barrier(database.writers)

    async def beside_the_others(session: Session) -> int:
        await together.wait()
        return await number_of(session)

    try:
        async with asyncio.timeout(20):
            opened = await asyncio.gather(*(database.write(beside_the_others) for _ in range(database.writers)))
            used = [await database.write(number_of) for _ in range(database.writers)]
    finally:
        await database.close()
    assert len(set(opened)) == database.writers == 3
    assert sorted(used) == sorted(opened)


async def test_a_loop_that_is_told_to_end_while_a_connection_opens_does_end(mysql_database: str) -> None:
    """Whenever it is told so: a cancellation that is swallowed leaves a matcher leading that was to stop."""
    opener = MySqlOpener(parse_url(mysql_database), wait_timeout_s=30.0, autocommit=True)

    async def loop() -> None:
        connection = await opener.open()
        try:
            await asyncio.sleep(60)
        finally:
            opener.discard(connection)

    for turns in range(300):
        task = asyncio.create_task(loop())
        for _ in range(turns % 40):
            await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait([task], timeout=10)
        assert ended, f"told to end after {turns % 40} turns of the event loop, it goes on"
        assert task.cancelled()
    await opener.finish()
