"""Bodies: how they are decoded, refused, hashed and answered."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api.codec import (
    BodyDecoder,
    body_hash,
    check_metadata,
    query_float,
    query_int,
    query_names,
    speaks_msgpack,
    wants_msgpack,
)
from api.errors import Problem
from api.rides import YOUNGER_FIELDS
from api.schema import RideRequest, rfc3339

RIDE = {"pickup": {"lat": 40.7, "lon": -74.0}}
decoder = BodyDecoder(RideRequest)


def decode(body: Any, *, is_msgpack: bool = False) -> RideRequest:
    if isinstance(body, bytes):
        return decoder.decode(body, is_msgpack=is_msgpack)
    encode = msgspec.msgpack.encode if is_msgpack else msgspec.json.encode
    return decoder.decode(encode(body), is_msgpack=is_msgpack)


def refused(body: Any, *, is_msgpack: bool = False) -> Problem:
    with pytest.raises(Problem) as caught:
        decode(body, is_msgpack=is_msgpack)
    return caught.value


def test_the_same_ride_is_read_from_json_and_msgpack() -> None:
    assert decode(RIDE) == decode(RIDE, is_msgpack=True)


@pytest.mark.parametrize("is_msgpack", [False, True])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"pickup": {"lat": 91, "lon": 0}}, "/pickup/lat"),
        ({"pickup": {"lat": 0, "lon": -181.0}}, "/pickup/lon"),
        ({"pickup": {"lat": "40", "lon": 0}}, "/pickup/lat"),
        ({"pickup": {"lat": 40}}, "/pickup/lon"),
        ({"pickup": [40, 2]}, "/pickup"),
        ({}, "/pickup"),
        (RIDE | {"seats": 0}, "/seats"),
        (RIDE | {"seats": 1000}, "/seats"),
        (RIDE | {"seats": 2**62}, "/seats"),
        (RIDE | {"seats": 1.5}, "/seats"),
        (RIDE | {"tags": "pets"}, "/tags"),
        (RIDE | {"tags": ["pets", 3]}, "/tags/1"),
        (RIDE | {"tags": ["pets"] * 17}, "/tags"),
        (RIDE | {"seats": True}, "/seats"),
        (RIDE | {"seats": None}, "/seats"),
        (RIDE | {"class": "Very Fancy"}, "/class"),
        (RIDE | {"deadline_s": 0}, "/deadline_s"),
        (RIDE | {"deadline_s": -1}, "/deadline_s"),
        (RIDE | {"metadata": [1]}, "/metadata"),
        (RIDE | {"client_id": "somebody-else"}, "/client_id"),
        (RIDE | {"dropoff": {"lat": 0.5, "lon": 0.5, "alt": 3}}, "/dropoff/alt"),
    ],
)
def test_a_field_that_is_not_valid_is_named_by_its_pointer(body: Any, pointer: str, is_msgpack: bool) -> None:
    problem = refused(body, is_msgpack=is_msgpack)
    assert (problem.status, problem.code, problem.errors[0].pointer) == (422, "invalid", pointer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_in_msgpack_are_refused(value: float) -> None:
    assert refused({"pickup": {"lat": value, "lon": 0}}, is_msgpack=True).errors[0].pointer == "/pickup/lat"
    assert refused(RIDE | {"deadline_s": value}, is_msgpack=True).errors[0].pointer == "/deadline_s"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"pickup":{"lat":NaN,"lon":1}}',
        b'{"pickup":{"lat":Infinity,"lon":1}}',
        b'{"pickup":{"lat":1,"lon":1},"metadata":{"a":"\xff"}}',
        b'{"pickup":{"lat":1,"lon":1},"metadata":{"a":"\\ud800"}}',
        b'{"pickup":{"lat":1,"lon":1},"metadata":{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}}",
        b'{"pickup":{"lat":1,"lon":1}} trailing',
    ],
)
def test_json_that_cannot_be_read_is_malformed(body: bytes) -> None:
    problem = refused(body)
    assert (problem.status, problem.code) == (400, "malformed-body")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x81",
        b"\xc1",
        msgspec.msgpack.encode(RIDE) + b"\x00",
        msgspec.msgpack.encode(RIDE | {"metadata": {"a": 1}})[:-1] + b"\x91" * 20_000,
        msgspec.msgpack.encode(RIDE | {"metadata": {"a": 1}})[:-1] + b"\xa1\xff",
    ],
)
def test_msgpack_that_cannot_be_read_is_refused(body: bytes) -> None:
    assert refused(body, is_msgpack=True).status in (400, 422)


def test_one_meaning_has_one_hash_in_json_and_msgpack_and_any_order_of_keys() -> None:
    body = RIDE | {"metadata": {"a": 1, "b": {"x": [1.0, None, "é"], "y": True}}}
    turned = {"metadata": {"b": {"y": True, "x": [1, None, "é"]}, "a": 1.0}, "pickup": {"lon": -74, "lat": 40.7}}
    assert body_hash(decode(body)) == body_hash(decode(turned, is_msgpack=True))


def test_a_default_counts_as_if_it_were_sent() -> None:
    assert body_hash(decode(RIDE)) == body_hash(decode(RIDE | {"seats": 1, "class": "standard", "dropoff": None}))


def test_a_field_of_a_later_version_leaves_the_hash_of_a_body_without_it_as_it_was() -> None:
    """P3: a retry that reaches a process of another version is still the same request."""
    before = "ee2e9cefbf230a4ca0a00b6152a08c62a369f4fe575ca7aacf1b064c2c4405f4"
    assert body_hash(decode(RIDE), younger=YOUNGER_FIELDS).hex() == before
    assert body_hash(decode(RIDE | {"tags": [], "pickup_at": None}), younger=YOUNGER_FIELDS).hex() == before
    for said in ({"tags": ["pets"]}, {"pickup_at": "2031-01-01T00:00:00Z"}):
        assert body_hash(decode(RIDE | said), younger=YOUNGER_FIELDS).hex() != before


def test_a_body_with_tags_alone_has_the_hash_of_the_version_that_knew_no_times() -> None:
    """P3"""
    before = "fe152ed24055f8d0e3cb97c23f9c9e7ec36e5b3d9c0369ed5e4d61026de6f63f"
    assert body_hash(decode(RIDE | {"tags": ["pets"]}), younger=YOUNGER_FIELDS).hex() == before


@pytest.mark.parametrize(
    "change",
    [{"seats": 2}, {"metadata": {"a": 1}}, {"deadline_s": 5}, {"pickup": {"lat": 40.7000001, "lon": -74.0}}],
)
def test_another_meaning_has_another_hash(change: dict[str, Any]) -> None:
    assert body_hash(decode(RIDE)) != body_hash(decode(RIDE | change))


def metadata_problem(metadata: dict[str, Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        check_metadata(metadata, bytes_max=100)
    return caught.value


def test_metadata_of_plain_values_is_kept() -> None:
    check_metadata({"a": [1, -(2**63) + 1, 1.5, "x", None, True, {"b": []}]}, bytes_max=100)


@pytest.mark.parametrize(
    ("metadata", "pointer"),
    [
        ({"a": "x" * 101}, "/metadata"),
        ({"a": {"b/c": b"bytes"}}, "/metadata/a/b~1c"),
        ({"a": [math.nan]}, "/metadata/a/0"),
        ({"a": {1: 2}}, "/metadata/a"),
        ({"a": 2**70}, "/metadata/a"),
        ({"a": [[[[[[[[[]]]]]]]]]}, "/metadata/a/0/0/0/0/0/0/0"),
    ],
)
def test_metadata_that_cannot_be_given_back_as_it_came_is_refused(metadata: dict[str, Any], pointer: str) -> None:
    problem = metadata_problem(metadata)
    assert problem.status == 422
    assert problem.errors[0].pointer == pointer


@pytest.mark.parametrize(
    ("accept", "is_msgpack"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("application/msgpack", True),
        ("application/x-msgpack", True),
        ("application/json;q=0.5, application/msgpack", True),
        ("application/json, application/msgpack;q=0.5", False),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=rubbish", False),
        ("text/html", False),
    ],
)
def test_the_answer_is_json_unless_msgpack_is_preferred(accept: str | None, is_msgpack: bool) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert wants_msgpack(make_mocked_request("GET", "/", headers=headers)) is is_msgpack


@pytest.mark.parametrize(
    ("content_type", "is_msgpack"),
    [
        (None, False),
        ("application/json", False),
        ("application/json; charset=utf-8", False),
        ("application/msgpack", True),
        ("application/vnd.msgpack", True),
    ],
)
def test_the_content_type_says_how_a_body_is_read(content_type: str | None, is_msgpack: bool) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert speaks_msgpack(make_mocked_request("POST", "/", headers=headers)) is is_msgpack


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}])
def test_another_media_type_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Problem) as caught:
        speaks_msgpack(make_mocked_request("POST", "/", headers=headers))
    assert caught.value.status == 415


@pytest.mark.parametrize("text", ["", "x", "-1", "201", "1e2", "٣", "1" * 5000, "0x10", " 5"])
def test_a_query_integer_out_of_range_is_refused(text: str) -> None:
    request = make_mocked_request("GET", "/").clone(rel_url=f"/?k={text}")
    with pytest.raises(Problem) as caught:
        query_int(request, "k", 10, least=1, most=200)
    assert caught.value.errors[0].pointer == "?k"


@pytest.mark.parametrize("text", ["", "nan", "inf", "-inf", "91", "x", "1" * 40])
def test_a_query_number_out_of_range_is_refused(text: str) -> None:
    request = make_mocked_request("GET", "/").clone(rel_url=f"/?lat={text}")
    with pytest.raises(Problem) as caught:
        query_float(request, "lat", least=-90, most=90)
    assert caught.value.errors[0].pointer == "?lat"


@pytest.mark.parametrize(
    ("query", "names"),
    [("", []), ("?tags=a", ["a"]), ("?tags=a,b", ["a", "b"]), ("?tags=a&tags=b,c", ["a", "b", "c"]), ("?tags=", [""])],
)
def test_names_in_a_query_are_separated_by_commas_or_repeated(query: str, names: list[str]) -> None:
    assert query_names(make_mocked_request("GET", "/").clone(rel_url=f"/{query}"), "tags") == names


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_800_000_000_123, "2027-01-15T08:00:00.123Z"),
        (1_799_999_999_999, "2027-01-15T07:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(ms: int, text: str) -> None:
    assert rfc3339(ms) == text


def status_of(data: bytes, is_msgpack: bool) -> int:
    """What a client would be told; anything but a Problem is a fault and fails the test."""
    try:
        check_metadata(decoder.decode(data, is_msgpack=is_msgpack).metadata, bytes_max=100)
    except Problem as problem:
        return problem.status
    return 201


@given(data=st.binary(max_size=200), is_msgpack=st.booleans())
def test_no_bytes_are_a_fault_of_ours(data: bytes, is_msgpack: bool) -> None:
    assert status_of(data, is_msgpack) in (201, 400, 422)


@given(at=st.integers(0, 200), byte=st.integers(0, 255), is_msgpack=st.booleans())
def test_one_wrong_byte_in_a_good_body_is_no_fault_of_ours(at: int, byte: int, is_msgpack: bool) -> None:
    good = RIDE | {"seats": 2, "class": "large", "metadata": {"a": [1, 2.5, "é", {"b": None}]}, "deadline_s": 60}
    data = bytearray((msgspec.msgpack.encode if is_msgpack else msgspec.json.encode)(good))
    data[at % len(data)] = byte
    assert status_of(bytes(data), is_msgpack) in (201, 400, 422)
