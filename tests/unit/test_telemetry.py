"""What is counted on the hot path comes out as Prometheus expects it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from api.telemetry import Durations


def test_seconds_are_counted_in_every_bucket_that_they_do_not_exceed() -> None:
    registry = CollectorRegistry()
    taken = Durations(registry, "taken_seconds", "How long.", ("route",), buckets_s=(0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        taken.add("/a", seconds=seconds)
    taken.add("/b", seconds=2.0)
    lines = generate_latest(registry).decode().splitlines()
    assert "# TYPE taken_seconds histogram" in lines
    buckets = {bound: f'taken_seconds_bucket{{le="{bound}",route="/a"}}' for bound in ("0.1", "1.0", "+Inf")}
    assert [line for line in lines if line.startswith("taken_seconds") and "/a" in line] == [
        f"{buckets['0.1']} 2.0",
        f"{buckets['1.0']} 3.0",
        f"{buckets['+Inf']} 4.0",
        'taken_seconds_count{route="/a"} 4.0',
        'taken_seconds_sum{route="/a"} 3.65',
    ]
