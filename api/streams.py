"""The handlers of long-lived sockets, made of the service's parts: drivers' own, and gateways'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.auth import Authenticator
from api.driver_stream import DriverStream
from api.fleet_stream import FleetStream

if TYPE_CHECKING:
    from api.service import Service


def driver_stream(service: Service, authenticator: Authenticator) -> DriverStream:
    return DriverStream(
        store=service.store,
        desk=service.desk,
        announcer=service.announcer,
        sign_ons=service.sign_ons,
        planes=service.planes,
        paths=service.paths,
        markets=service.markets,
        tags=service.tags,
        authenticator=authenticator,
        sockets=service.sockets,
        sessions=service.sessions,
        metrics=service.metrics,
        queue_of=service.queues.greet,
        max_frame_bytes=service.settings.max_frame_bytes,
        ack_interval_s=service.settings.ack_interval_s,
    )


def fleet_stream(service: Service, authenticator: Authenticator) -> FleetStream:
    return FleetStream(
        store=service.store,
        desk=service.desk,
        announcer=service.announcer,
        sign_ons=service.sign_ons,
        planes=service.planes,
        paths=service.paths,
        markets=service.markets,
        tags=service.tags,
        authenticator=authenticator,
        sockets=service.sockets,
        sessions=service.sessions,
        metrics=service.metrics,
        queue_of=service.queues.greet,
    )
