"""What of webhooks needs no service: signatures, addresses, pauses, shares, and what is sent."""

from __future__ import annotations

import random
import socket
from ipaddress import ip_address

import msgspec
import pytest

from api.client import verify_signature
from api.schema_webhooks import RetryRequest, WebhookRequest, notice, place_of
from api.webhook_hosts import PrivateAddress, is_public, public_socket, url_fault
from api.webhook_sender import SHARE, SLOW_SHARE, judged, pause_ms, rooms_of
from api.webhook_signature import signature
from geo.model import MarketId
from matcher.model import ClientId, RideEvent, RideId, RideState
from matcher.store_webhooks import Place

SECRET = "correct horse battery"
BODY = b'{"id":"r_1.1"}'
RIDE = RideId("r_" + "0" * 25 + "1")


class TestSignatures:
    def test_a_signature_fits_its_body_secret_and_time_and_no_other(self) -> None:
        header = signature(SECRET, BODY, 1000)
        assert verify_signature(SECRET, header, BODY, 1000.0)
        assert not verify_signature(SECRET, header, BODY + b" ", 1000.0)
        assert not verify_signature("another secret", header, BODY, 1000.0)
        assert not verify_signature(SECRET, header.replace("t=1000", "t=1001"), BODY, 1000.0)

    def test_it_is_the_hmac_that_anybody_can_compute(self) -> None:
        """printf '1.{}' | openssl dgst -sha256 -hmac kkkkkkkkkkkkkkkk"""
        digest = "f1769982edf184902c2040cf16499ffca0cc180bf51acc650981e75bfb2bde6d"
        assert signature("k" * 16, b"{}", 1) == f"t=1,v1={digest}"

    @pytest.mark.parametrize(("now_s", "fits"), [(700.0, True), (1300.0, True), (699.0, False), (1301.0, False)])
    def test_what_was_overheard_is_soon_of_no_use(self, now_s: float, fits: bool) -> None:
        assert verify_signature(SECRET, signature(SECRET, BODY, 1000), BODY, now_s, tolerance_s=300.0) is fits

    def test_of_several_signatures_one_has_to_fit(self) -> None:
        """As while a secret is changed."""
        header = f"{signature(SECRET, BODY, 1000)}, v1={'0' * 64},v2=x"
        assert verify_signature(SECRET, header, BODY, 1000.0)

    @pytest.mark.parametrize(
        "header", ["", "t=1000", "v1=" + "0" * 64, "t=1000,v1=", "t=x,v1=ü", "t=1000,t=1000,v1=0", "t=" + "9" * 5000]
    )
    def test_what_is_no_signature_fits_nothing(self, header: str) -> None:
        assert not verify_signature(SECRET, header, BODY, 1000.0)


PUBLIC = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")
PRIVATE = (
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::f5ff:fffe",
)


class TestHosts:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_an_address_of_the_public_internet_may_be_sent_to(self, address: str) -> None:
        assert is_public(ip_address(address))

    @pytest.mark.parametrize("address", PRIVATE)
    def test_what_only_we_can_reach_may_not(self, address: str) -> None:
        assert not is_public(ip_address(address))

    def test_a_socket_is_made_for_public_addresses_alone(self) -> None:
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))).close()
        with pytest.raises(PrivateAddress, match=r"10\.0\.0\.1"):
            public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 80)))

    @pytest.mark.parametrize(
        "url",
        ["https://a.example/x?y=1", "http://a.example:8080", "https://ü.example/ü", "http://8.8.8.8/", "HTTP://A.B"],
    )
    def test_a_plain_url_may_be_a_webhooks(self, url: str) -> None:
        assert url_fault(url, private_hosts=False) is None

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "a.example",
            "/x",
            "ftp://a.example/",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "http://u:p@a.example/",
            "http://u@a.example/",
            "http://a.example:0/",
            "http://a.example:99999/",
            "http://a.example/ x",
            "http://a.example/\r\nX: y",
            "http://[::1",
            "http://\ud800/",
        ],
    )
    def test_anything_else_may_not(self, url: str) -> None:
        assert url_fault(url, private_hosts=True) is not None

    @pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]:80/", "http://[::ffff:10.0.0.1]/"])
    def test_a_private_address_is_told_of_at_once_unless_it_is_allowed(self, url: str) -> None:
        assert url_fault(url, private_hosts=False) is not None
        assert url_fault(url, private_hosts=True) is None


class TestAttempts:
    @pytest.mark.parametrize("status", [200, 201, 204, 299])
    def test_an_answer_of_2xx_takes_the_delivery(self, status: int) -> None:
        assert judged(status).error is None

    @pytest.mark.parametrize("status", [301, 307, 400, 404, 429, 500, 503])
    def test_any_other_is_tried_again(self, status: int) -> None:
        attempt = judged(status)
        assert (attempt.error, attempt.is_final) == (f"answered {status}", False)

    def test_gone_is_final(self) -> None:
        assert judged(410).is_final

    def test_pauses_are_drawn_from_a_range_that_doubles_up_to_ten_minutes(self) -> None:
        rng = random.Random(1)
        most = [max(pause_ms(attempts, rng) for _ in range(400)) for attempts in range(1, 14)]
        expected = [min(600_000, 1000 * 2**n) for n in range(13)]
        assert all(0.9 * bound < found <= bound for found, bound in zip(most, expected, strict=True))
        assert min(pause_ms(12, rng) for _ in range(400)) < 60_000

    def test_a_client_has_room_for_its_share_and_a_slow_one_for_a_single_delivery(self) -> None:
        ann, bob, eve = ClientId("ann"), ClientId("bob"), ClientId("eve")
        rooms = rooms_of([ann, ann, bob], [bob, eve], random.Random(1))
        assert rooms == {ann: SHARE - 2, bob: 0, eve: 1}

    def test_all_slow_clients_together_leave_room_for_the_others(self) -> None:
        slow = [ClientId(f"c{n}") for n in range(100)]
        rooms = rooms_of(slow[:3], slow, random.Random(1))
        assert sum(rooms.values()) == SLOW_SHARE - 3
        assert all(rooms[client_id] == 0 for client_id in slow[:3])
        assert sum(rooms_of(slow[:SLOW_SHARE], slow, random.Random(1)).values()) == 0


class TestWire:
    def test_a_notice_wraps_the_event_as_streams_show_it(self) -> None:
        event = RideEvent(RIDE, 2, MarketId("m"), "assigned", RideState.ASSIGNED, None, None, None, 0)
        sent = msgspec.to_builtins(notice(event))
        assert (sent["id"], sent["type"]) == (f"{RIDE}.2", "ride.assigned")
        assert sent["event"]["ride_id"] == RIDE
        assert sent["event"]["at"] == "1970-01-01T00:00:00.000Z"

    def test_a_cursor_is_read_back_and_nothing_else_is_one(self) -> None:
        assert place_of(f"17.{RIDE}.3") == Place(17, RIDE, 3)
        for text in ("", f"{RIDE}.3", f"17.{RIDE}.0", f"x.{RIDE}.3", f"17.{RIDE}.3 ", "17.r_x.3", f"٣.{RIDE}.3"):
            assert place_of(text) is None

    @pytest.mark.parametrize(
        "body",
        [
            b"{}",
            b'{"url":""}',
            b'{"url":"http://a/","secret":"short"}',
            b'{"url":"http://a/","secret":"with a space in it"}',
            b'{"url":"http://a/","more":1}',
            b'{"url":"' + b"x" * 2001 + b'"}',
        ],
    )
    def test_a_registration_that_is_not_whole_is_refused(self, body: bytes) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(body, type=WebhookRequest)

    def test_ids_to_retry_are_ids_of_deliveries(self) -> None:
        assert msgspec.json.decode(b'{"ids":["%s.2"]}' % RIDE.encode(), type=RetryRequest).ids == [f"{RIDE}.2"]
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(b'{"ids":["r_1.2"]}', type=RetryRequest)
