"""Where a request carries its token, and the identity that was found in it."""

from __future__ import annotations

from aiohttp import hdrs, web

from api.auth import Authenticator, Identity, unauthenticated

BEARER_SUBPROTOCOL = "bearer."
IDENTITY = web.RequestKey("identity", Identity)


def token_of(request: web.BaseRequest) -> str:
    """The bearer token: a header, or for browsers' WebSockets a subprotocol. Raises Problem 401.

    A token in the address is refused: addresses end up in logs.
    """
    asked = request.rel_url.raw_query_string
    # The name may be written in many ways, but only with a percent sign in another than this one.
    if ("%" in asked or "access_token" in asked) and "access_token" in request.query:
        raise unauthenticated("a token in the address is not accepted: send it in the Authorization header")
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for header in request.headers.getall("Sec-WebSocket-Protocol", []):
        for name in header.split(","):
            if name.strip().startswith(BEARER_SUBPROTOCOL):
                return name.strip().removeprefix(BEARER_SUBPROTOCOL)
    raise unauthenticated("send the header: Authorization: Bearer <token>")


def authenticate(request: web.Request, authenticator: Authenticator) -> Identity:
    """Raises Problem 401; otherwise the identity is kept with the request."""
    identity = authenticator.identify(token_of(request))
    request[IDENTITY] = identity
    return identity


def identity_of(request: web.Request) -> Identity:
    """The identity of a request that the middleware let through."""
    return request[IDENTITY]
