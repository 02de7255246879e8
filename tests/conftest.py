"""Servers and databases that tests ask for by name.

`HEXHAIL_TEST_REDIS_URL` and `HEXHAIL_TEST_DATABASE_URL` name servers to use
instead of starting them: a Redis or Valkey whose numbered database may be
flushed, and a MySQL or MariaDB on which databases may be made and dropped
(`mysql+aiomysql://user:password@host:port/`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.servers import MariaServer, RedisServer, fresh_database, redis_client


def pytest_configure(config: pytest.Config) -> None:
    """A session that is told to end stops its servers first, as it does after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis that all tests of the session share: use names of your own, or `clean_redis_url`."""
    if given := os.environ.get("HEXHAIL_TEST_REDIS_URL"):
        yield given
        return
    server = RedisServer()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def clean_redis_url(redis_url: str) -> str:
    """The shared Redis with its database flushed before the test."""
    with contextlib.closing(redis_client(redis_url)) as client:
        client.flushdb()
    return redis_url


@pytest.fixture(scope="session")
def mysql_url() -> Iterator[str]:
    """A MySQL or MariaDB server that all tests of the session share; it names no database."""
    if given := os.environ.get("HEXHAIL_TEST_DATABASE_URL"):
        yield given
        return
    server = MariaServer()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def mysql_database(mysql_url: str) -> Iterator[str]:
    """A new, empty database for one test."""
    with fresh_database(mysql_url) as url:
        yield url


@pytest.fixture(scope="class")
def mysql_class_database(mysql_url: str) -> Iterator[str]:
    """A new, empty database for one test class."""
    with fresh_database(mysql_url) as url:
        yield url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, to kill, freeze or restart."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def maria_server() -> Iterator[MariaServer]:
    """A MariaDB of the test's own, to kill, freeze or restart."""
    server = MariaServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
