"""What several modules ask for by name: a store on MySQL or MariaDB, and the same by way of a proxy that cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from matcher.solver import SolverChild
from matcher.store import Store
from tests.mysql_proxy import MySqlProxy
from tests.servers import fresh_database
from tests.stores import StoreCase, migrated


@pytest.fixture(scope="module")
def schema_url(mysql_url: str) -> Iterator[str]:
    """One migrated database for the module."""
    with fresh_database(mysql_url) as url:
        yield migrated(url)


@pytest.fixture
async def case(schema_url: str) -> AsyncIterator[StoreCase]:
    """The module's database, empty."""
    case = StoreCase(await Store.open(schema_url, pool_size=8), schema_url)
    case.empty()
    yield case
    await case.store.close()


@pytest.fixture
async def proxy(schema_url: str) -> AsyncIterator[MySqlProxy]:
    async with MySqlProxy(schema_url) as proxy:
        yield proxy


@pytest.fixture
async def by_proxy(case: StoreCase, proxy: MySqlProxy) -> AsyncIterator[StoreCase]:
    """The same database by way of the proxy; short of patience."""
    by_proxy = StoreCase(await Store.open(proxy.url, pool_size=8, call_timeout_s=3.0), case.url)
    yield by_proxy
    await by_proxy.store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def solver() -> AsyncIterator[SolverChild]:
    """A solver's child that the tests of a module share; they run in the module's event loop."""
    child = SolverChild()
    yield child
    await child.close()


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"
    url: str = request.getfixturevalue("mysql_database")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"
