"""Connections to servers that are set up otherwise, and to those that go away."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import aiomysql
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from matcher.connections import MySqlOpener, _mysql_options, parse_url
from matcher.mysql_session import MySqlSession
from matcher.mysql_wire import Layouts, Wire
from matcher.sessions import Disconnected
from matcher.statement import Statement
from tests.servers import MariaServer

ECHO = Statement(sa.select(sa.bindparam("value"), sa.literal(1)))
#: The second byte of what GBK takes for two characters here is the quote's or the backslash's own escape.
TEXTS = ["縗' OR 1=1 -- ", "誠'", "縗\\", "Zürich 🚕"]
#: A server of protocol 10 without CLIENT_SSL among its capabilities.
GREETING = (
    b"\x0a9.9.9\0" + bytes(4) + b"x" * 8 + b"\0" + b"\xff\xf7\x2d\x02\0\xff\xc7\x15" + bytes(10) + b"x" * 12 + b"\0"
    b"mysql_native_password\0"
)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself; and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def encrypted_url(tmp_path: Path) -> Iterator[str]:
    """A server with TLS that takes every client to speak GBK."""
    cert, key = certificate(tmp_path)
    gbk = ("--skip-character-set-client-handshake", "--character-set-server=gbk")
    server = MariaServer(f"--ssl-cert={cert}", f"--ssl-key={key}", *gbk)
    try:
        server.start()
        yield f"{server.url}mysql?ssl_ca={cert}"
    finally:
        server.remove()


async def test_texts_arrive_whole_over_tls_and_at_a_server_of_another_charset(encrypted_url: str) -> None:
    """No server's setting may make a quote of what was escaped."""
    opener = MySqlOpener(parse_url(encrypted_url), wait_timeout_s=30.0, autocommit=True)
    wire = await opener.open()
    assert wire._transport.get_extra_info("ssl_object") is not None
    raw = wire._transport.get_extra_info("socket")
    session = MySqlSession(wire, settling=False)
    for text in (*TEXTS, "x" * 1_000_000):
        [reply] = await session.run(ECHO(value=text))
        assert reply.rows == [[text, 1]]
    waiting = asyncio.create_task(wire.query(b"SELECT SLEEP(60)"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0)
    assert raw.fileno() == -1  # at once: a server that is busy, or gone, says no farewell
    with pytest.raises(Disconnected):
        await session.run(ECHO(value="later"))
    await opener.finish()


async def test_a_server_without_tls_is_told_no_user_where_tls_was_asked_for() -> None:
    heard: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(len(GREETING).to_bytes(3, "little") + b"\0" + GREETING)
        heard.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        opener = MySqlOpener(
            parse_url(f"mysql+aiomysql://ann:secret@127.0.0.1:{port}/name?ssl=true"),
            wait_timeout_s=30.0,
            autocommit=True,
        )
        with pytest.raises(Disconnected, match="the server offers no TLS"):
            await opener.open()
        while not heard:
            await asyncio.sleep(0.001)
    assert heard == [b""]


async def test_a_connection_that_the_server_closed_before_it_was_taken_over_is_known_to_be_lost(
    mysql_database: str,
) -> None:
    connection = aiomysql.Connection(**_mysql_options(parse_url(mysql_database)))
    await connection._connect()
    await connection.query("SET SESSION wait_timeout = 1")
    while not (connection._writer.transport.is_closing() or connection._reader.eof_received):
        await asyncio.sleep(0.05)
    wire = Wire(connection, Layouts())
    with pytest.raises(Disconnected, match="the server closed the connection"):
        await MySqlSession(wire, settling=False).run(ECHO(value=1))
    await asyncio.sleep(0)
