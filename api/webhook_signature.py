"""How a webhook's receiver knows that a delivery is ours: an HMAC over the time and the very bytes of the body.

    Hexhail-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" under the secret>

The time bounds for how long what somebody has overheard can be sent again. Pure; time is an argument.
"""

from __future__ import annotations

import hashlib
import hmac
import re

HEADER = "Hexhail-Signature"
#: Longer headers are not looked at.
HEADER_CHARS_MAX = 1000
_TIME = re.compile(r"t=([0-9]{1,15})", re.ASCII)


def signature(secret: str, body: bytes, at_s: int) -> str:
    """The header's value."""
    return f"t={at_s},v1={_digest(secret, body, str(at_s))}"


def verify_signature(secret: str, header: str, body: bytes, now_s: float, tolerance_s: float = 300.0) -> bool:
    """Whether `header` signs exactly this body, at a time no further from `now_s` (unix seconds) than `tolerance_s`.

    Compares in constant time. Of several signatures one has to fit, so that others may stand beside it.
    """
    parts = [part.strip() for part in header.split(",")] if len(header) <= HEADER_CHARS_MAX else []
    times = [found[1] for part in parts if (found := _TIME.fullmatch(part))]
    if len(times) != 1 or abs(now_s - int(times[0])) > tolerance_s:
        return False
    expected = b"v1=" + _digest(secret, body, times[0]).encode()
    fits = [hmac.compare_digest(expected, part.encode()) for part in parts if part.startswith("v1=")]
    return any(fits)


def _digest(secret: str, body: bytes, at_s: str) -> str:
    return hmac.new(secret.encode(), at_s.encode() + b"." + body, hashlib.sha256).hexdigest()
