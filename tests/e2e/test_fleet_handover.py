"""A driver that a gateway hands over: what it sent last is neither lost nor acknowledged too early."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.fleet_gateway import gateway
from tests.e2e.running import LAT, LON, running, settings_for


@pytest.mark.parametrize("comes_back", [False, True])
async def test_the_last_position_of_a_driver_handed_over_is_acknowledged_once_it_stands_or_is_outdated(
    tmp_path: Path, comes_back: bool
) -> None:
    async with running(settings_for(tmp_path, flush_ms=5000), "api") as run:
        await run.put_driver("d1")
        rig, other = await gateway(run), await gateway(run)
        await rig.sign_on("d1")
        await rig.send(type="positions", seq=1, items=[{"driver_id": "d1", "seq": 1, "lat": LAT, "lon": LON}])
        await rig.sign_off("d1", offline=False)
        assert [frame for frame in rig.passed if frame["type"] == "ack"] == []
        if comes_back:
            await other.sign_on("d1")
        else:
            assert await run.service.planes["new-york"].flusher.flush()  # type: ignore[index]
            assert run.service.metrics.published.total() == 1
        assert (await rig.next("ack"))["seq"] == 1
