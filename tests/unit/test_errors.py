"""Every way of failing has one problem, and every problem's code is fixed in one table."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from api import errors
from api.errors import CODES, Problem, from_validation, invalid, problem_of, retry_later
from geo.feed import FeedUnavailable
from matcher.errors import StoreUnavailable
from matcher.rides import Overloaded

API = Path(errors.__file__).parent


def body_of(problem: Problem) -> dict[str, object]:
    response = problem.to_response()
    assert response.content_type == "application/problem+json"
    assert isinstance(response.body, bytes)
    body: dict[str, object] = msgspec.json.decode(response.body)
    return body


def test_a_problem_has_the_members_of_rfc_9457_and_a_code() -> None:
    body = body_of(invalid("/seats", "too many"))
    assert body == {
        "type": "urn:hexhail:problem:invalid",
        "title": CODES["invalid"][1],
        "status": 422,
        "detail": "/seats: too many",
        "code": "invalid",
        "errors": [{"pointer": "/seats", "detail": "too many"}],
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreUnavailable("down"), 503, "store-unavailable"),
        (FeedUnavailable("down"), 503, "positions-unavailable"),
        (Overloaded("full", 2.2), 503, "overloaded"),
    ],
)
def test_a_part_that_is_away_is_503_and_says_when_to_come_again(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert (problem.status, problem.code) == (status, code)
    assert int(problem.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("asked_s", "said"), [(0.0, "1"), (1.0, "1"), (1.01, "2"), (2.2, "3")])
def test_retry_after_is_whole_seconds_and_never_too_early(asked_s: float, said: str) -> None:
    assert retry_later("overloaded", "x", asked_s).headers["Retry-After"] == said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (web.HTTPNotFound(), "not-found"),
        (web.HTTPMethodNotAllowed("GET", ["POST"]), "method-not-allowed"),
        (web.HTTPRequestEntityTooLarge(1, 2), "body-too-large"),
        (web.HTTPBadRequest(text="a broken handshake"), "malformed-request"),
    ],
)
def test_the_frameworks_refusals_are_problems_too(error: web.HTTPException, code: str) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert (problem.code, problem.status) == (code, error.status)


def test_a_defect_of_ours_is_nobodys_problem_but_ours() -> None:
    assert problem_of(KeyError("x")) is None


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    n: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Inner]
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"items":[{"n":1},{"n":"x"}]}', "/items/1/n"),
        (b'{"items":[{"a/b~c":1}]}', "/items/0/a~1b~0c"),
        (b"{}", "/items"),
        (b"[]", ""),
        (b'{"items":[],"named":{"a":{"n":null}}}', "/named/.../n"),
    ],
)
def test_a_validation_error_becomes_a_json_pointer(body: bytes, pointer: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=Outer)
    assert from_validation(caught.value).errors[0].pointer == pointer


def calls_and_words() -> tuple[set[str], set[str]]:
    """First arguments of what makes a problem, and every word of the sources outside the table itself."""
    made, words = set[str](), set[str]()
    for path in API.glob("*.py"):
        tree = ast.parse(path.read_text())
        table = {id(n) for top in tree.body if isinstance(top, ast.AnnAssign) for n in ast.walk(top)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in table:
                words.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Problem", "retry_later") and node.args:
                made |= {str(node.args[0].value)} if isinstance(node.args[0], ast.Constant) else set()
    return made, words


def test_every_code_that_is_raised_stands_in_the_table_and_every_one_in_the_table_is_used() -> None:
    made, words = calls_and_words()
    assert len(made) > 10
    assert made <= CODES.keys()
    assert CODES.keys() <= words
