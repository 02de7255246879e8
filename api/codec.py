"""Bodies in JSON and msgpack: which one a request speaks, decoding, encoding and hashing.

JSON is the default both ways. Every way in which bytes can be wrong ends as one
of two problems: `malformed-body` (400, cannot be read) or `invalid` (422, read,
but a field is not as it must be).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from aiohttp import hdrs, web

from api.errors import Problem, from_validation, invalid

JSON = "application/json"
MSGPACK = "application/msgpack"
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
DEPTH_MAX = 8
_INT_MAX = 2**63 - 1
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)

_TO_JSON: Final = msgspec.json.Encoder()
_TO_MSGPACK: Final = msgspec.msgpack.Encoder()

T = TypeVar("T")


class BodyDecoder(Generic[T]):
    """Decodes bodies into one type of wire struct."""

    def __init__(self, kind: type[T]) -> None:
        self._json = msgspec.json.Decoder(kind)
        self._msgpack = msgspec.msgpack.Decoder(kind)

    def decode(self, data: bytes, *, is_msgpack: bool) -> T:
        """Raises Problem 400 or 422."""
        try:
            return self._msgpack.decode(data) if is_msgpack else self._json.decode(data)
        except msgspec.ValidationError as error:
            raise from_validation(error) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem("malformed-body", f"the body cannot be decoded: {error}") from error
        except RecursionError as error:
            raise Problem("malformed-body", "the body is nested too deeply") from error


def speaks_msgpack(request: web.BaseRequest) -> bool:
    """Whether the body is msgpack. Raises Problem 415 for what we don't read."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem("unsupported-media-type", "compressed bodies are not accepted")
    if "Content-Type" not in request.headers or request.content_type == JSON:
        return False
    if request.content_type in _MSGPACK_NAMES:
        return True
    raise Problem("unsupported-media-type", f"send {JSON} or {MSGPACK}")


def wants_msgpack(request: web.BaseRequest) -> bool:
    """Whether msgpack is what the client would rather have; anything unknown is answered in JSON."""
    accept = request.headers.get(hdrs.ACCEPT, "")
    return "msgpack" in accept and _prefers_msgpack(accept)


@lru_cache(maxsize=64)
def _prefers_msgpack(accept: str) -> bool:
    """A client sends the same header with every request."""
    ranked = sorted((_weighed(each) for each in accept.split(",")), key=lambda pair: -pair[0])
    known = [name for weight, name in ranked if weight > 0 and (name in _MSGPACK_NAMES or name in (JSON, "*/*"))]
    return bool(known) and known[0] in _MSGPACK_NAMES


def _weighed(part: str) -> tuple[float, str]:
    name, *parameters = (each.strip().lower() for each in part.split(";"))
    for each in parameters:
        if each.startswith("q="):
            try:
                weight = float(each[2:])
            except ValueError:
                return 0.0, name
            return (weight if 0.0 <= weight <= 1.0 else 0.0), name
    return 1.0, name


def answer(
    request: web.BaseRequest, body: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """`body` in the form that the client prefers."""
    if wants_msgpack(request):
        data, media = _TO_MSGPACK.encode(body), MSGPACK
    else:
        data, media = _TO_JSON.encode(body), JSON
    return web.Response(status=status, body=data, content_type=media, headers=headers)


def check_metadata(metadata: dict[str, Any], *, bytes_max: int) -> None:
    """The client's own metadata: plain JSON values, not too deep, not too large. Raises Problem 422."""
    _check_value(metadata, "/metadata", 1)
    size = len(msgspec.json.encode(metadata))
    if size > bytes_max:
        raise invalid("/metadata", f"takes {size} bytes as JSON, at most {bytes_max} are kept")


def _check_value(value: Any, pointer: str, depth: int) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) > _INT_MAX:
            raise invalid(pointer, "the integer does not fit into 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise invalid(pointer, "the number is not finite")
    elif isinstance(value, list | dict):
        _check_container(value, pointer, depth)
    else:
        raise invalid(pointer, "only what JSON can say is kept")


def _check_container(value: list[Any] | dict[Any, Any], pointer: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise invalid(pointer, f"nested deeper than {DEPTH_MAX} levels")
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in pairs:
        if not isinstance(key, str | int) or (isinstance(value, dict) and not isinstance(key, str)):
            raise invalid(pointer, "the keys of an object must be strings")
        _check_value(each, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}", depth + 1)


def body_hash(body: msgspec.Struct, *, younger: Collection[str] = ()) -> bytes:
    """SHA-256 of what a body means: the same in JSON and msgpack, whatever the order of keys.

    Defaults count as if they were sent, and 1.0 is 1, since JSON does not tell them apart. `younger` are fields
    that came with a later version: left out while they say nothing, so that a retry finds the hash that a process
    of the version before has written (P3).
    """
    plain = _canonical(msgspec.to_builtins(body))
    for name in younger:
        if not plain[name]:
            del plain[name]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).digest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def query_int(request: web.BaseRequest, name: str, default: int, *, least: int, most: int) -> int:
    """A query parameter within [least, most]. Raises Problem 422."""
    text = request.query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text) or not least <= int(text) <= most:
        raise invalid(f"?{name}", f"must be an integer from {least} to {most}")
    return int(text)


def query_float(request: web.BaseRequest, name: str, *, least: float, most: float) -> float | None:
    """A query parameter within [least, most], None when absent. Raises Problem 422."""
    text = request.query.get(name)
    return None if text is None else number_within(text, name, least=least, most=most)


def number_within(text: str, name: str, *, least: float, most: float) -> float:
    """The number that the query parameter `name` says, within [least, most]. Raises Problem 422."""
    try:
        value = float(text) if len(text) <= 32 and text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise invalid(f"?{name}", f"must be a number from {least:g} to {most:g}")
    return value


def query_choice(request: web.BaseRequest, name: str, choices: tuple[str, ...]) -> str | None:
    """A query parameter that is one of these, None when absent. Raises Problem 422."""
    text = request.query.get(name)
    if text is not None and text not in choices:
        raise invalid(f"?{name}", f"must be one of {', '.join(choices)}")
    return text


def query_names(request: web.BaseRequest, name: str) -> list[str]:
    """A query parameter that lists names, separated by commas or given several times; none when absent."""
    return [each for text in request.query.getall(name, []) for each in text.split(",")]
