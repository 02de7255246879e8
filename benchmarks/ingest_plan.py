"""What the drivers of a measurement send when: plain functions of numbers, the same on every side and in every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from api.schema import PositionFrame

#: Where the drivers start: around this point, this far apart (the golden angle spreads them evenly).
CENTER_LAT, CENTER_LON = 40.75, -73.98
SPREAD_DEG = 0.09
GOLDEN_RAD = math.pi * (3.0 - math.sqrt(5.0))
#: Some two metres a position, two hundred positions to and as many fro: 40 km/h at five a second.
STEP_DEG = 2e-5
TURN_AFTER = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """Frame number i is due `times[i]` seconds after the start and carries `a_frame` positions by `lines[i]`."""

    times: Sequence[float]
    lines: Sequence[int]
    a_frame: int = 1

    def due_s_by_line(self) -> dict[int, list[float]]:
        """When each line's frames are due, in their order."""
        found: dict[int, list[float]] = {}
        for due_s, line in zip(self.times, self.lines, strict=True):
            found.setdefault(line, []).append(due_s)
        return found


def steady_plan(lines: int, frames_per_s: float, seconds: float, a_frame: int = 1) -> Plan:
    """All lines in turn, frames evenly spread; everybody sends as many."""
    frames = max(1, round(frames_per_s * seconds / lines)) * lines
    return Plan(
        [number / frames_per_s for number in range(frames)], [number % lines for number in range(frames)], a_frame
    )


def flood_plan(lines: int, mean_per_s: float, flood_per_s: float, share: float) -> Plan:
    """Three seconds at a mean rate each, but the first `share` of the lines send a flood in the second one."""
    due: list[tuple[float, int]] = []
    for line in range(lines):
        phase_s = line / lines / mean_per_s
        steady = [phase_s + number / mean_per_s for number in range(round(3 * mean_per_s))]
        if line < max(1, round(lines * share)):
            steady = [each for each in steady if not 1.0 <= each < 2.0]
            steady += [1.0 + number / flood_per_s for number in range(round(flood_per_s))]
        due += [(each, line) for each in steady]
    due.sort()
    return Plan([each for each, _ in due], [line for _, line in due])


def fix_of(driver: int, number: int) -> PositionFrame:
    """A driver's position of this number; 0 is where it starts."""
    reach = SPREAD_DEG * math.sqrt(((driver * 7919) % 10_007) / 10_007)
    lat = CENTER_LAT + reach * math.sin(driver * GOLDEN_RAD)
    lon = CENTER_LON + reach * math.cos(driver * GOLDEN_RAD)
    turn, step = divmod(number, TURN_AFTER)
    along = step if turn % 2 == 0 else TURN_AFTER - step
    heading = 0.0 if turn % 2 == 0 else 180.0
    return PositionFrame(
        seq=number + 1, lat=round(lat + along * STEP_DEG, 6), lon=round(lon, 6), heading=heading, speed=11.1
    )
