"""Who is asking, and what they may do (P11).

Identity comes from a signed token (JWT, HS256) and from nothing else. The roles:
a `client` owns the rides it made; a `driver` speaks for itself; a `fleet`
speaks for the drivers its token names; an `admin` may do everything. This
module knows no request and no store.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import jwt

from api.errors import Problem
from geo.model import DriverId
from matcher.model import ClientId

ALGORITHM = "HS256"
#: Tokens remembered as valid; beyond, the oldest is forgotten and checked anew.
TOKENS_KNOWN_MAX = 10_000
TOKEN_CHARS_MAX = 8192
DRIVER_PATTERNS_MAX = 512
SECRET_BYTES_MIN = 32
_SUBJECT = re.compile(r"[A-Za-z0-9._:@+-]{1,64}\Z")


class Role(StrEnum):
    CLIENT = "client"
    DRIVER = "driver"
    FLEET = "fleet"
    ADMIN = "admin"


def is_name(text: str) -> bool:
    """Whether this may be a driver's or client's id: 1 to 64 letters, digits and ._:@+-"""
    return _SUBJECT.match(text) is not None


@dataclass(frozen=True, slots=True)
class Identity:
    """A checked token. `drivers` and `prefixes` are whom a fleet may speak for."""

    subject: str
    role: Role
    expires_at_s: float
    drivers: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    @property
    def client_id(self) -> ClientId:
        return ClientId(self.subject)

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    def may_drive(self, driver_id: str) -> bool:
        """Whether it may speak for this driver."""
        if self.role is Role.DRIVER:
            return self.subject == driver_id
        if self.role is Role.FLEET:
            return driver_id in self.drivers or driver_id.startswith(self.prefixes)
        return self.role is Role.ADMIN

    def need(self, *roles: Role) -> None:
        """Raises 403 unless the role is one of these, or admin."""
        if self.role not in roles and self.role is not Role.ADMIN:
            raise Problem("forbidden", f"the role {self.role.value} may not do this")

    def need_driver(self, driver_id: str) -> DriverId:
        """Raises 403 unless it may speak for this driver."""
        if not self.may_drive(driver_id):
            raise Problem("forbidden", "the token does not speak for this driver")
        return DriverId(driver_id)


class Authenticator:
    """Checks tokens. `leeway_s` allows for clocks that differ; `clock` is unix seconds."""

    def __init__(self, secret: bytes, *, leeway_s: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"the token secret has {len(secret)} bytes, at least {SECRET_BYTES_MIN} are needed")
        self._secret = secret
        self._leeway_s = leeway_s
        self._clock = clock
        self._known: dict[str, Identity] = {}  # of tokens whose signature was checked

    def identify(self, token: str) -> Identity:
        """Raises Problem 401: not a token of ours, or no longer valid."""
        if len(token) > TOKEN_CHARS_MAX:
            raise unauthenticated("the token is too long")
        identity = self._known.get(token) or self._remembered(token, _identity_of(self._claims(token)))
        if self.seconds_left(identity) <= 0:
            raise unauthenticated("the token has expired", code="token-expired")
        return identity

    def _remembered(self, token: str, identity: Identity) -> Identity:
        """A client sends the same token with every request: its signature is checked once."""
        if len(self._known) >= TOKENS_KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[token] = identity
        return identity

    def seconds_left(self, identity: Identity) -> float:
        """How long the token is still good for, the leeway included."""
        return identity.expires_at_s + self._leeway_s - self._clock()

    def _claims(self, token: str) -> dict[str, Any]:
        # The expiry is judged by our own clock (see identify); PyJWT checks the rest.
        options: Any = {"require": ["exp", "sub"], "verify_exp": False, "verify_iat": False}
        try:
            return jwt.decode(token, self._secret, algorithms=[ALGORITHM], options=options, leeway=self._leeway_s)
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise unauthenticated("the token is not valid") from error


def unauthenticated(detail: str, *, code: str = "unauthenticated") -> Problem:
    return Problem(code, detail, headers={"WWW-Authenticate": 'Bearer realm="hexhail"'})


def _identity_of(claims: dict[str, Any]) -> Identity:
    subject, role, expires = claims.get("sub"), claims.get("role"), claims.get("exp")
    if not isinstance(subject, str) or not is_name(subject):
        raise unauthenticated("the token's subject is not a name")
    if not isinstance(role, str) or role not in Role.__members__.values():
        raise unauthenticated("the token has no known role")
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not 0 < expires < 1e11:
        raise unauthenticated("the token's expiry is not a time")
    exact, prefixes = _patterns(claims.get("drivers", []))
    return Identity(subject, Role(role), float(expires), exact, prefixes)


def _patterns(drivers: Any) -> tuple[frozenset[str], tuple[str, ...]]:
    """Exact ids, and prefixes of those that end in `*`; a `*` elsewhere is refused."""
    if not isinstance(drivers, list) or len(drivers) > DRIVER_PATTERNS_MAX:
        raise unauthenticated("the token's drivers are not a list that can be used")
    for each in drivers:
        if not isinstance(each, str) or not (each == "*" or is_name(each.removesuffix("*"))):
            raise unauthenticated("the token's drivers are not ids or prefixes")
    exact = frozenset(each for each in drivers if not each.endswith("*"))
    return exact, tuple(each[:-1] for each in drivers if each.endswith("*"))


def make_token(
    secret: bytes, subject: str, role: Role, *, ttl_s: float, drivers: Sequence[str] = (), now_s: float | None = None
) -> str:
    """A signed token, good for `ttl_s` seconds. Raises ValueError for a subject that is no name."""
    if not is_name(subject):
        raise ValueError(f"{subject!r} is not a name: 1 to 64 letters, digits and ._:@+-")
    now = time.time() if now_s is None else now_s
    claims: dict[str, Any] = {"sub": subject, "role": role.value, "iat": int(now), "exp": int(now + ttl_s)}
    if drivers:
        claims["drivers"] = list(drivers)
    return jwt.encode(claims, secret, algorithm=ALGORITHM)
