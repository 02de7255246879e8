"""The test session's own servers do what the other tests rely on."""

from __future__ import annotations

import contextlib

import pymysql
import pytest
import redis

from tests.servers import MariaServer, RedisServer, mysql_connection, redis_client


def test_a_fresh_database_is_empty_and_can_be_written(mysql_database: str) -> None:
    with contextlib.closing(mysql_connection(mysql_database)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == ()
        cursor.execute("CREATE TABLE t (a INT PRIMARY KEY)")
        cursor.execute("INSERT INTO t VALUES (1)")
        cursor.execute("SELECT a FROM t")
        assert cursor.fetchall() == ((1,),)


def test_a_killed_redis_comes_back_empty_on_the_same_port(redis_server: RedisServer) -> None:
    with contextlib.closing(redis_client(redis_server.url)) as client:
        client.set("k", "v")
        redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        redis_server.restart()
        assert client.get("k") is None


def test_a_frozen_redis_answers_again_when_thawed(redis_server: RedisServer) -> None:
    with contextlib.closing(redis.Redis.from_url(redis_server.url, socket_timeout=0.2, retry=None)) as client:
        client.set("k", "v")
        redis_server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.get("k")
        redis_server.thaw()
        assert client.get("k") == b"v"


@pytest.mark.chaos
def test_a_killed_mariadb_keeps_what_was_committed(maria_server: MariaServer) -> None:
    with contextlib.closing(mysql_connection(maria_server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE kept")
        cursor.execute("CREATE TABLE kept.t (a INT PRIMARY KEY)")
        cursor.execute("INSERT INTO kept.t VALUES (7)")
        maria_server.kill()
        with pytest.raises(pymysql.MySQLError):
            cursor.execute("SELECT 1")
    maria_server.start()
    with contextlib.closing(mysql_connection(maria_server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT a FROM kept.t")
        assert cursor.fetchall() == ((7,),)
