"""The command line: help, tokens, and one clear line for what a person did wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.auth import Authenticator, Role
from api.cli import EXIT_UNUSABLE, main

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEXHAIL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _hexhail(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a person calls it."""
    command = [sys.executable, "-m", "api.cli", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=45, env=env, check=False)


def test_a_token_speaks_for_the_named_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", SECRET)
    assert main(["token", "--role", "client", "--sub", "acme"]) == 0
    identity = Authenticator(SECRET.encode()).identify(capsys.readouterr().out.strip())
    assert (identity.subject, identity.role) == ("acme", Role.CLIENT)


def test_a_fleets_token_names_its_drivers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", SECRET)
    assert main(["token", "--role", "fleet", "--sub", "cabs", "--drivers", "d1,cab-*"]) == 0
    identity = Authenticator(SECRET.encode()).identify(capsys.readouterr().out.strip())
    assert identity.may_drive("d1")
    assert identity.may_drive("cab-77")
    assert not identity.may_drive("d2")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--role", "fleet", "--sub", "cabs"),
        ("--role", "client", "--sub", "a", "--drivers", "d1"),
        ("--role", "client", "--sub", "not a name"),
        ("--role", "client", "--sub", "a", "--ttl", "0"),
    ],
)
def test_a_token_that_nobody_could_use_is_not_made(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", SECRET)
    assert main(["token", *arguments]) == EXIT_UNUSABLE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("hexhail: ")


def test_an_embedded_services_token_is_signed_with_the_secret_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "--data-dir", str(tmp_path), "--role", "driver", "--sub", "d1"]) == 0
    secret = (tmp_path / "token_secret").read_text().strip()
    assert Authenticator(secret.encode()).identify(capsys.readouterr().out.strip()).may_drive("d1")


def test_every_fault_of_the_settings_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEXHAIL_PROT", "1")
    assert main(["serve", "--workers", "0", "--port", "70000"]) == EXIT_UNUSABLE
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["HEXHAIL_PROT", "--port", "--workers"]


def test_help_and_version_end_well() -> None:
    for argument, word in (("--help", "serve"), ("--version", "hexhail ")):
        done = _hexhail(argument)
        assert done.returncode == 0
        assert word in done.stdout
        assert "worker" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "word"),
    [
        (("serve", "--port", "http"), {}, "invalid int value"),
        (("serve",), {"HEXHAIL_TOKEN_SECRET": "short"}, "32 bytes"),
        (("serve", "--data-dir", "/proc/none"), {}, "/proc/none"),
        (("serve", "--data-dir", "/proc/none"), {"HEXHAIL_TOKEN_SECRET": SECRET}, "/proc/none"),
        (("serve", "--host", "no.such.host.invalid"), {}, "no.such.host.invalid"),
        (("serve", "--config", "/no/such/file.toml"), {}, "No such file"),
        (("serve", "--workers", "2"), {}, "HEXHAIL_REDIS_URL and HEXHAIL_DATABASE_URL"),
    ],
)
def test_a_service_that_cannot_run_says_why_in_one_line(
    arguments: tuple[str, ...], environment: dict[str, str], word: str, tmp_path: Path
) -> None:
    given = {"HEXHAIL_DATA_DIR": str(tmp_path), "HEXHAIL_PORT": "0", **environment}
    done = _hexhail(*arguments, **given)
    assert done.returncode == EXIT_UNUSABLE
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line(busy_port: int, tmp_path: Path) -> None:
    done = _hexhail("serve", "--port", str(busy_port), "--data-dir", str(tmp_path))
    assert done.returncode == EXIT_UNUSABLE
    assert f"port {busy_port} on 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrating_twice_finds_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("was brought up to date", "is current"):
        assert main(["migrate", "--data-dir", str(tmp_path)]) == 0
        assert words in capsys.readouterr().out


def test_a_market_that_encloses_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "hexhail.toml"
    line = "[[[0, 0], [0, 1], [0, 0], [0, 1], [0, 0]]]"
    config.write_text(f'[[markets]]\nid = "x"\ngeojson = {{ type = "Polygon", coordinates = {line} }}\n')
    assert main(["serve", "--config", str(config), "--data-dir", str(tmp_path)]) == EXIT_UNUSABLE
    said = capsys.readouterr().err
    assert said.startswith("hexhail: markets: ")
    assert said.count("\n") == 1
