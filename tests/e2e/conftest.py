"""Whole services for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.e2e.running import Running, running, settings_for


@pytest_asyncio.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Running]:
    """A service that needs neither Redis nor MySQL."""
    async with running(settings_for(tmp_path)) as run:
        yield run
