"""Tokens and what they allow (P11)."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from api.auth import Authenticator, Role, make_token
from api.errors import Problem

SECRET = b"0123456789abcdef0123456789abcdef"
NOW_S = 1_800_000_000.0


def authenticator(now_s: float = NOW_S) -> Authenticator:
    return Authenticator(SECRET, leeway_s=5.0, clock=lambda: now_s)


def token(role: Role = Role.CLIENT, **named: Any) -> str:
    return make_token(SECRET, "somebody", role, ttl_s=60.0, now_s=NOW_S, **named)


def signed(claims: dict[str, Any], secret: bytes = SECRET, **named: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", **named)


def refused(text: str) -> str:
    with pytest.raises(Problem) as caught:
        authenticator().identify(text)
    assert caught.value.status == 401
    assert "WWW-Authenticate" in caught.value.headers
    return caught.value.code


def test_a_token_names_its_subject_and_role() -> None:
    identity = authenticator().identify(token(Role.DRIVER))
    assert (identity.subject, identity.role, identity.expires_at_s) == ("somebody", Role.DRIVER, NOW_S + 60)


def test_a_token_is_good_until_its_expiry_and_the_leeway() -> None:
    assert authenticator(NOW_S + 64).identify(token()).subject == "somebody"
    with pytest.raises(Problem) as caught:
        authenticator(NOW_S + 65).identify(token())
    assert caught.value.code == "token-expired"


def test_a_token_that_was_good_before_expires_all_the_same() -> None:
    now_s = [NOW_S]
    checking = Authenticator(SECRET, clock=lambda: now_s[0])
    mine = token()
    assert checking.identify(mine).subject == checking.identify(mine).subject == "somebody"
    now_s[0] = NOW_S + 65
    with pytest.raises(Problem) as caught:
        checking.identify(mine)
    assert caught.value.code == "token-expired"


def test_a_token_of_another_secret_is_refused() -> None:
    assert refused(signed({"sub": "a", "role": "admin", "exp": NOW_S + 60}, b"x" * 32)) == "unauthenticated"


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512", "RS256"])
def test_only_one_algorithm_is_accepted_whatever_the_header_says(algorithm: str) -> None:
    claims = {"sub": "a", "role": "admin", "exp": NOW_S + 60}
    if algorithm in ("HS384", "HS512"):
        text = jwt.encode(claims, SECRET * 2, algorithm=algorithm)
    else:
        header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
        text = b".".join((header, body, b"")).decode()
    assert refused(text) == "unauthenticated"


@pytest.mark.parametrize("missing", ["sub", "role", "exp"])
def test_every_claim_is_needed(missing: str) -> None:
    claims = {"sub": "a", "role": "client", "exp": NOW_S + 60}
    del claims[missing]
    assert refused(signed(claims)) == "unauthenticated"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a\n"},
        {"sub": "x" * 65},
        {"sub": "nöel"},
        {"role": "root"},
        {"role": ["admin"]},
        {"role": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 1e300},
        {"exp": -1},
        {"drivers": "d*"},
        {"drivers": ["a*b"]},
        {"drivers": [1]},
        {"drivers": ["x"] * 513},
        {"nbf": 1e12},
    ],
)
def test_a_claim_that_is_not_as_it_must_be_is_refused(claims: dict[str, Any]) -> None:
    assert refused(signed({"sub": "a", "role": "fleet", "exp": NOW_S + 60} | claims)) in (
        "unauthenticated",
        "token-expired",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "a.b.c",
        "..",
        "é.é.é",
        "a" * 9000,
        base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.e30",
        base64.urlsafe_b64encode(b'{"alg":"HS256","crit":["x"]}').decode() + ".e30.e30",
    ],
)
def test_what_is_no_token_is_refused_and_not_a_fault(text: str) -> None:
    assert refused(text) == "unauthenticated"


def test_a_driver_speaks_for_itself_alone() -> None:
    identity = authenticator().identify(token(Role.DRIVER))
    assert identity.may_drive("somebody")
    assert not identity.may_drive("somebody2")


def test_a_fleet_speaks_for_exact_ids_and_prefixes() -> None:
    identity = authenticator().identify(token(Role.FLEET, drivers=["d-1", "yellow-*"]))
    assert [identity.may_drive(each) for each in ("d-1", "yellow-7", "yellow-")] == [True, True, True]
    assert [identity.may_drive(each) for each in ("d-10", "yellow", "somebody", "")] == [False] * 4


def test_a_fleet_without_drivers_speaks_for_nobody() -> None:
    identity = authenticator().identify(token(Role.FLEET))
    assert not identity.may_drive("somebody")


def test_a_client_speaks_for_no_driver_and_an_admin_for_all() -> None:
    assert not authenticator().identify(token(Role.CLIENT)).may_drive("somebody")
    assert authenticator().identify(token(Role.ADMIN)).may_drive("anybody")


def test_a_role_that_is_not_among_those_needed_is_refused_unless_admin() -> None:
    with pytest.raises(Problem) as caught:
        authenticator().identify(token(Role.DRIVER)).need(Role.CLIENT)
    assert caught.value.status == 403
    authenticator().identify(token(Role.ADMIN)).need(Role.CLIENT)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError):
        Authenticator(b"short")


def test_a_token_is_not_made_for_what_is_no_name() -> None:
    with pytest.raises(ValueError):
        make_token(SECRET, "a b", Role.CLIENT, ttl_s=1)
