"""The real servers that tests start: those of benchmarks/servers.py, under the name that tests know."""

from benchmarks.servers import (
    MariaServer,
    RedisServer,
    Server,
    ServerMissing,
    die_with_session,
    find_program,
    free_port,
    fresh_database,
    mysql_connection,
    redis_client,
    wait_until,
)

__all__ = [
    "MariaServer",
    "RedisServer",
    "Server",
    "ServerMissing",
    "die_with_session",
    "find_program",
    "free_port",
    "fresh_database",
    "mysql_connection",
    "redis_client",
    "wait_until",
]
