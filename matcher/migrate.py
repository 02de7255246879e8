"""Brings a database to the newest revision of the schema, programmatically.

The revisions are a package beside this module; no alembic.ini and no working
directory matter. Two processes may start at once: on MySQL and MariaDB a named
lock of the server lets one go first and the other find everything done; the
embedded database's file belongs to one process anyway.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from matcher.database import Database
from matcher.errors import StoreUnavailable
from matcher.sessions import SchemaMissing, Session, mysql_fault, row_of, sqlite_fault
from matcher.statement import Statement

#: How long one process waits for another that is migrating.
LOCK_S_MAX = 60
_FOLDER = Path(__file__).parent / "migrations"
READ_REVISION = Statement(sa.select(sa.column("version_num")).select_from(sa.table("alembic_version")))


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def newest_revision() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # there is a first revision
    return head


async def migrate(url: URL) -> None:
    """Raises StoreUnavailable where the database cannot be reached or refuses."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade)
    except DBAPIError as error:
        cause = error.orig or error
        fault = mysql_fault(cause) if engine.dialect.name == "mysql" else sqlite_fault(cause)
        raise StoreUnavailable(f"the schema could not be brought up to date: {fault}") from error
    except (OSError, CommandError) as error:  # unreachable, or at a revision that this version does not know
        raise StoreUnavailable(f"the schema could not be brought up to date: {error}") from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name != "mysql":
        command.upgrade(_config(connection), "head")
        connection.commit()
        return
    lock = _lock_name(connection)
    taken = connection.execute(sa.select(sa.func.get_lock(lock, LOCK_S_MAX))).scalar()
    if taken != 1:
        raise StoreUnavailable(f"another process has been migrating this database for over {LOCK_S_MAX} s")
    try:
        command.upgrade(_config(connection), "head")
        connection.commit()
    finally:
        connection.execute(sa.select(sa.func.release_lock(lock)))


def _lock_name(connection: Connection) -> str:
    """Named locks are the server's, not the database's, and at most 64 characters."""
    name = connection.execute(sa.select(sa.func.database())).scalar() or ""
    return "hexhail-migrate-" + hashlib.sha256(str(name).encode()).hexdigest()[:32]


async def schema_is_current(database: Database) -> bool:
    """Raises StoreUnavailable where the database cannot be reached."""
    return await _revision(database) == newest_revision()


async def schema_is_empty(database: Database) -> bool:
    """Whether no revision was ever applied. Raises StoreUnavailable where the database cannot be reached."""
    return await _revision(database) is None


async def _revision(database: Database) -> str | None:
    async def work(session: Session) -> str | None:
        row = await row_of(session, READ_REVISION())
        return None if row is None else str(row[0])

    try:
        return await database.read(work)
    except SchemaMissing:
        return None
