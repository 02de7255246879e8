"""Migrations, the database's clock, and a store whose database is not as it should be."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from geo.model import DriverId
from matcher.errors import StoreLocked, StoreUnavailable
from matcher.migrate import _config as alembic_config
from matcher.model import RideId
from matcher.store import Store
from matcher.tables import METADATA
from tests.servers import free_port
from tests.stores import MARKET, TABLES, StoreCase, new_ride, sqlite_url


@pytest.fixture(params=["sqlite", "mysql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    url: str = request.getfixturevalue("mysql_database")
    return url


async def differences(url: str) -> list[Any]:
    engine = create_async_engine(url)

    def compare(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, METADATA))

    async with engine.connect() as connection:
        found = await connection.run_sync(compare)
    await engine.dispose()
    return found


async def upgrade_to(url: str, revision: str) -> None:
    """Brings an empty database to an earlier revision."""
    engine = create_async_engine(url)

    def upgrade(connection: sa.Connection) -> None:
        command.upgrade(alembic_config(connection), revision)
        connection.commit()

    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


def write_as_0001(case: StoreCase, ride_id: str, driver_id: str) -> None:
    """A ride and a driver as the first version writes them: it names its columns, and knows no other."""
    case.sql(
        "INSERT INTO rides (ride_id, client_id, market, state, version, pickup_lat, pickup_lon, seats, vehicle_class,"
        " metadata, requested_at_ms, deadline_at_ms, body_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(ride_id, "ann", MARKET, "searching", 1, 40.7, -74.0, 1, "standard", '{"a":1}', 1, 2, "h" * 32),
    )
    case.sql(
        "INSERT INTO drivers (driver_id, status, vehicle_class, seats, epoch, updated_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        *(driver_id, "offline", "standard", 4, 0, 1),
    )


class TestMigrations:
    async def test_they_lead_to_the_tables_that_the_code_uses(self, empty_url: str) -> None:
        store = await Store.open(empty_url)
        assert not await store.schema_is_current()
        await store.migrate()
        assert await store.schema_is_current()
        await store.close()
        assert await differences(empty_url) == []

    async def test_rows_of_the_version_before_are_read_and_it_still_writes_some(self, empty_url: str) -> None:
        """Processes are replaced one by one: what the old ones wrote, before and after, is whole."""
        case = StoreCase(await Store.open(empty_url), empty_url)
        await upgrade_to(empty_url, "0001")
        assert not await case.store.schema_is_current()
        write_as_0001(case, "r_before", "d-before")
        await case.store.migrate()
        assert await case.store.schema_is_current()
        write_as_0001(case, "r_after", "d-after")
        for name in ("before", "after"):
            ride, driver = await case.now(RideId(f"r_{name}")), await case.store.driver(DriverId(f"d-{name}"))
            assert driver is not None
            assert (ride.tags, ride.metadata, driver.tags, driver.seats) == ((), {"a": 1}, (), 4)
        assert (await case.ride(tags=("pets",))).tags == ("pets",)
        await case.store.close()

    async def test_migrating_again_changes_nothing(self, case: StoreCase) -> None:
        ride = await case.ride()
        await case.store.migrate()
        assert await case.store.ride(ride.ride_id) == ride

    async def test_a_migration_that_died_half_way_is_finished_by_the_next(self, empty_url: str) -> None:
        case = StoreCase(await Store.open(empty_url), empty_url)
        await case.store.migrate()
        for lost in ("trips", "drivers", "alembic_version"):
            case.sql(f"DROP TABLE {lost}")
        case.sql("DROP INDEX rides_open" + ("" if case.is_sqlite else " ON rides"))
        case.sql("ALTER TABLE rides DROP COLUMN tags")
        await case.store.migrate()
        assert await case.store.schema_is_current()
        assert await differences(empty_url) == []
        await case.store.close()

    async def test_two_processes_may_migrate_at_once(self, mysql_database: str) -> None:
        stores = [await Store.open(mysql_database) for _ in range(3)]
        await asyncio.gather(*[store.migrate() for store in stores])
        assert [await store.schema_is_current() for store in stores] == [True] * 3
        for store in stores:
            await store.close()

    async def test_without_a_schema_the_reason_says_what_to_do(self, empty_url: str) -> None:
        store = await Store.open(empty_url)
        with pytest.raises(StoreUnavailable, match="hexhail migrate"):
            await store.request_rides([new_ride()])
        await store.close()


class TestClock:
    async def test_it_is_utc_in_whole_milliseconds_and_does_not_go_back(self, case: StoreCase) -> None:
        before_ms = time.time_ns() // 1_000_000
        readings = [await case.store.now_ms() for _ in range(50)]
        after_ms = time.time_ns() // 1_000_000
        assert readings == sorted(readings)
        # The test's servers share the machine's clock; a given server may be a few seconds off.
        assert before_ms - 60_000 <= readings[0] <= readings[-1] <= after_ms + 60_000
        assert any(reading % 1000 for reading in readings)

    async def test_it_is_exact_at_the_edges_of_a_second(self, tmp_path: Path) -> None:
        """SQLite writes its time as text: each of these must come out as the milliseconds that went in."""
        store = StoreCase(await Store.open(sqlite_url(tmp_path)), sqlite_url(tmp_path))
        for ms in (0, 1, 9, 99, 500, 994, 995, 998, 999):
            at = f"'2026-03-01 23:59:59.{ms:03d}'"
            [[read]] = store.sql(
                f"SELECT CAST(strftime('%s', {at}) AS INTEGER) * 1000"
                f" + CAST(substr(strftime('%f', {at}), 4) AS INTEGER)"
            )
            assert read % 1000 == ms
        await store.store.close()


class TestFaults:
    async def test_a_second_store_on_the_same_file_is_refused_until_the_first_ends(self, tmp_path: Path) -> None:
        url = sqlite_url(tmp_path / "made" / "on the way")
        first = await Store.open(url)
        with pytest.raises(StoreLocked, match="in use by another"):
            await Store.open(url)
        await first.close()
        await (await Store.open(url)).close()

    async def test_a_file_that_cannot_be_written_is_refused_with_its_path(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreLocked, match="cannot be opened"):
            await Store.open(sqlite_url(tmp_path / "file"))

    @pytest.mark.parametrize(
        "url",
        [
            "mysql://x/y",
            "nonsense",
            "mysql+aiomysql://127.0.0.1:3306/",
            "sqlite+aiosqlite://",
            "mysql+aiomysql://h/d?x=1",
        ],
    )
    async def test_a_url_that_cannot_be_used_is_refused_at_once(self, url: str) -> None:
        with pytest.raises(ValueError, match="database's URL"):
            await Store.open(url)

    async def test_a_server_that_is_down_shows_in_the_first_call(self) -> None:
        store = await Store.open(f"mysql+aiomysql://u:secret@127.0.0.1:{free_port()}/db")
        for call in (store.now_ms(), store.request_rides([new_ride()]), store.schema_is_current(), store.migrate()):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert "secret" not in caught.value.reason
        await store.close()

    async def test_commands_cancelled_at_any_moment_leave_a_sound_store(self, case: StoreCase) -> None:
        """No connection is lost or given back in the middle of an answer, no half of a change stays."""
        ride, trip = await case.matched()
        for n in range(40):
            jobs = [asyncio.create_task(case.ride(f"c-{n}-{i}", key="k")) for i in range(6)]
            jobs.append(asyncio.create_task(case.store.audit()))  # type: ignore[arg-type]
            await asyncio.sleep(0.0003 * n)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.gather(*[case.now(ride.ride_id) for _ in range(30)])
        await asyncio.gather(*[case.ride(f"after-{n}") for n in range(30)])
        assert await case.store.versions([ride.ride_id]) == {ride.ride_id: 2}
        assert trip.ride_id == ride.ride_id
        audit = await case.store.audit()
        assert audit.holds
        assert audit.rides_of_events == sum(audit.rides.values())

    async def test_all_tables_are_known_to_the_tests(self) -> None:
        assert set(METADATA.tables) == set(TABLES)
