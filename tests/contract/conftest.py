"""The store's contract runs on a SQLite file and on a real MySQL or MariaDB, by the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from matcher.store import Store
from tests.servers import fresh_database
from tests.stores import StoreCase, copied_sqlite, migrated, sqlite_url


@pytest.fixture(scope="session")
def migrated_mysql(mysql_url: str) -> Iterator[str]:
    """One migrated database for the session; each test finds it empty."""
    with fresh_database(mysql_url) as url:
        yield migrated(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return migrated(sqlite_url(tmp_path_factory.mktemp("template")))


@pytest.fixture(params=["sqlite", "mysql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database with the newest schema."""
    if request.param == "mysql":
        yield request.getfixturevalue("migrated_mysql")
    else:
        with copied_sqlite(request.getfixturevalue("migrated_sqlite"), tmp_path) as url:
            yield url


@pytest.fixture
async def case(store_url: str) -> AsyncIterator[StoreCase]:
    case = StoreCase(await Store.open(store_url, pool_size=8), store_url)
    case.empty()
    yield case
    await case.store.close()
