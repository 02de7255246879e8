"""/v1/webhook: where a client's events are sent to, and what became of those that could not be delivered.

A client has one webhook and sees nothing but its own (P11); an admin names the client. How deliveries are made stands
in api.webhook_sender.
"""

from __future__ import annotations

import secrets

from aiohttp import web

from api.auth import Role, is_name
from api.codec import BodyDecoder, answer, query_choice, query_int, speaks_msgpack
from api.errors import Problem, invalid
from api.limits import read_body
from api.schema import rfc3339
from api.schema_webhooks import (
    DeliveryPage,
    RetriedOut,
    RetryRequest,
    WebhookRequest,
    WebhookSetOut,
    cursor_of,
    delivery_out,
    key_of,
    place_of,
    webhook_out,
)
from api.security import identity_of
from api.webhook_hosts import url_fault
from matcher.model import ClientId
from matcher.store_webhooks import State, Webhooks

PAGE_MAX = 200
PAGE_DEFAULT = 50
BODY_S_MAX = 10.0


class WebhooksApi:
    def __init__(self, *, store: Webhooks, max_body_bytes: int, private_hosts: bool) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._private_hosts = private_hosts
        self._webhook_body = BodyDecoder(WebhookRequest)
        self._retry_body = BodyDecoder(RetryRequest)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/v1/webhook", self.put),
            web.get("/v1/webhook", self.get),
            web.delete("/v1/webhook", self.delete),
            web.get("/v1/webhook/deliveries", self.deliveries),
            web.post("/v1/webhook/deliveries/retry", self.retry),
        ]

    async def put(self, request: web.Request) -> web.Response:
        client_id = client_of(request)
        is_msgpack = speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        body = self._webhook_body.decode(data, is_msgpack=is_msgpack)
        if fault := url_fault(body.url, private_hosts=self._private_hosts):
            raise invalid("/url", fault)
        secret = body.secret or secrets.token_urlsafe(32)
        hook = await self._store.put(client_id, url=body.url, secret=secret)
        return answer(request, WebhookSetOut(hook.url, secret, rfc3339(hook.created_at_ms)))

    async def get(self, request: web.Request) -> web.Response:
        hook = await self._store.get(client_of(request))
        if hook is None:
            raise Problem("webhook-unknown", "this client has no webhook")
        return answer(request, webhook_out(hook))

    async def delete(self, request: web.Request) -> web.Response:
        """204 also where there is none (any more): what was asked for holds."""
        await self._store.delete(client_of(request))
        return web.Response(status=204)

    async def deliveries(self, request: web.Request) -> web.Response:
        client_id = client_of(request)
        state = query_choice(request, "state", tuple(each.value for each in State))
        limit = query_int(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
        cursor = request.query.get("cursor")
        after = None if cursor is None else place_of(cursor)
        if cursor is not None and after is None:
            raise invalid("?cursor", "is not one that this service gave")
        rows = await self._store.undelivered(
            client_id, state=None if state is None else State(state), after=after, limit=limit + 1
        )
        following = cursor_of(rows[limit - 1]) if len(rows) > limit else None
        return answer(request, DeliveryPage([delivery_out(row) for row in rows[:limit]], following))

    async def retry(self, request: web.Request) -> web.Response:
        client_id = client_of(request)
        is_msgpack = request.body_exists and speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        body = self._retry_body.decode(data, is_msgpack=is_msgpack) if data else RetryRequest()
        keys = None if body.ids is None else [key_of(each) for each in body.ids]
        return answer(request, RetriedOut(await self._store.retry(client_id, keys)))


def client_of(request: web.Request) -> ClientId:
    """Whose webhook it is about: the client's own; an admin may name another. Raises Problem 403 or 422."""
    identity = identity_of(request)
    identity.need(Role.CLIENT)
    name = request.query.get("client", identity.subject)
    if name != identity.subject and not identity.is_admin:
        raise Problem("forbidden", "a client has its own webhook only")
    if not is_name(name):
        raise invalid("?client", "is not a client's name")
    return ClientId(name)
