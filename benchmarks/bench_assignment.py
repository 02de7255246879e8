"""A batch assigned: ours against dense scipy, OR-Tools and lapx; growth, scarcity, and what the loop feels.

Ours is the whole way from places to a certified plan over all pairs in reach, in one process, compiled
beforehand. The dense pipeline makes the matrix and solves it. OR-Tools gets the pairs that our search ended
with. Every optimum is compared with ours before its time counts: they may differ by the rounding of each
chosen pair to 2**-10 s. `loop` is the event loop of a process whose matcher builds, hands over, plans and
explains a scarce batch again and again, while the solver's process works beside it on the same cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import assignment_page
from benchmarks import assignment_peers as peers
from benchmarks.batches import even, scarce
from benchmarks.failures import NotMeasured
from benchmarks.goals import Goal, judged, not_measured
from benchmarks.loop_stall import loop_stall
from benchmarks.machine import figures, versions
from benchmarks.rounds import Ratio, interleaved, ratio_of
from benchmarks.tell import Teller
from matcher import optimum
from matcher.problem import STEPS_PER_S, Problem, Solution

#: The step that is judged goes from here to the last.
TENTH = 5000
GROWTH = (1000, 2000, 5000, 10_000, 20_000, 50_000)
SCARCE_DRIVERS, SCARCE_TIMES = 2000, (0.5, 1.0, 2.0, 5.0, 10.0)
#: lapx takes minutes beyond this.
LAPX_RIDES = 1000
QUICK_SHARE = 0.1
#: How long the event loop is watched, idle and busy.
LOOP_S = 12.0
GOALS = (
    Goal("even_vs_dense", 20.0),
    Goal("scarce_vs_dense", 10.0),
    Goal("scarce_vs_ortools", 1.0),
    Goal("growth_10x", 15.0, at_most=True),
    Goal("loop_stall_ms", 20.0, at_most=True),
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a tenth of every size: for a look, not for figures")


class Disagreement(NotMeasured):
    """A peer found another optimum: nothing that was measured counts."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    tell = Teller(json=args.json)
    bench = _Bench(args.rounds, args.seed, QUICK_SHARE if args.quick else 1.0, tell)
    optimum.solve(even(300, 600, 1), compare=True, near=4)  # compiled now, not while measured
    optimum.solve(scarce(600, 300, 1))
    ours: dict[str, Any] = {}
    others: dict[str, Any] = {}
    bench.even_and_scarce(ours, others)
    ours["growth"] = bench.growth()
    ours["scarcity"] = bench.scarcity()
    tell("the event loop while batches are solved beside it")
    ours["loop"] = loop_stall(scarce(bench.size(10_000), bench.size(5000), args.seed), LOOP_S)
    measured = _ratios(bench.seconds)
    ratios = {name: round(ratio.median, 3) for name, ratio in measured.items()}
    ratios["loop_stall_ms"] = ours["loop"]["stall_ms"]
    result = {
        "versions": versions("numpy", "scipy", "numba", "ortools", "lapx"),
        "quick": args.quick,
        "ours": ours,
        "peers": others,
        "ratios": ratios,
        "noise": {name: ratio.noise for name, ratio in measured.items()},
        "goals": judged(ratios, GOALS),
        "not_measured": not_measured(ratios, GOALS),
    }
    _show(tell.console, result)
    return result


def _ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Ratio]:
    """What is slower stands above; a growth is the last size by the one a tenth of it."""
    sides = {
        "even_vs_dense": ("even_dense", "even"),
        "scarce_vs_dense": ("scarce_dense", "scarce"),
        "scarce_vs_ortools": ("scarce_ortools", "scarce"),
        "even_vs_ortools": ("even_ortools", "even"),
        "growth_10x": (f"growth_{GROWTH[-1]}", f"growth_{TENTH}"),
        "small_vs_lapx": ("lapx_small", f"growth_{GROWTH[0]}"),
    }
    return {
        name: ratio_of(seconds[above], seconds[below]) for name, (above, below) in sides.items() if above in seconds
    }


class _Bench:
    def __init__(self, rounds: int, seed: int, share: float, tell: Teller) -> None:
        self._rounds, self._seed, self._share, self._tell = rounds, seed, share, tell
        #: Every round of what a ratio is made of.
        self.seconds: dict[str, list[float]] = {}

    def size(self, count: int) -> int:
        return max(20, round(count * self._share))

    def even_and_scarce(self, ours: dict[str, Any], others: dict[str, Any]) -> None:
        for name, problem in (
            ("even", even(self.size(5000), self.size(10_000), self._seed)),
            ("scarce", scarce(self.size(10_000), self.size(5000), self._seed)),
        ):
            self._tell(f"{name}: {problem.n_rides} rides x {problem.n_drivers} drivers")
            solution = optimum.solve(problem)
            times = self._interleaved(_sides(problem, solution))
            self.seconds |= {name: times["ours"]} | {f"{name}_{each}": times[each] for each in times if each != "ours"}
            ours[name] = figures(times.pop("ours")) | _facts(solution)
            others |= {f"{name}_{peer}": figures(seconds) for peer, seconds in times.items()}
        if peers.has("lap"):
            problem = even(self.size(LAPX_RIDES), 2 * self.size(LAPX_RIDES), self._seed)
            solution = optimum.solve(problem)
            times = self._interleaved({"lapx": partial(_peer, "lapx", peers.lapx_cost_s, problem, solution)})
            self.seconds["lapx_small"] = times["lapx"]
            others["lapx_small"] = figures(times["lapx"]) | {"rides": problem.n_rides, "drivers": problem.n_drivers}

    def _interleaved(self, sides: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        return interleaved({name: partial(_seconds, call) for name, call in sides.items()}, self._rounds)

    def growth(self) -> list[dict[str, Any]]:
        """Even batches of constant density. The ends of the tenfold step are measured in turn, like peers."""
        problems = {rides: even(rides, 2 * rides, self._seed) for rides in map(self.size, GROWTH)}
        self._tell(f"growth: {', '.join(map(str, problems))} rides")
        facts = {rides: _facts(optimum.solve(problem)) for rides, problem in problems.items()}
        times = self._interleaved({str(rides): partial(optimum.solve, each) for rides, each in problems.items()})
        self.seconds |= {f"growth_{size}": times[str(self.size(size))] for size in GROWTH}
        return [
            {"rides": rides, "drivers": 2 * rides, **figures(times[str(rides)]), **facts[rides]} for rides in problems
        ]

    def scarcity(self) -> list[dict[str, Any]]:
        """Waiting rides of 0.5 to 10 times the drivers, around other centres than these."""
        drivers, rows = self.size(SCARCE_DRIVERS), []
        self._tell(f"scarcity: {', '.join(f'{each:g}' for each in SCARCE_TIMES)} rides a driver")
        for times_drivers in SCARCE_TIMES:
            problem = scarce(round(drivers * times_drivers), drivers, self._seed)
            solution = optimum.solve(problem, compare=True)
            times = self._interleaved(_sides(problem, solution))
            measured = {name: figures(seconds) for name, seconds in times.items()}
            assert solution.greedy_s is not None
            rows.append(
                {"rides_a_driver": times_drivers, "rides": problem.n_rides, "drivers": drivers}
                | measured
                | _facts(solution)
                | {"gain_over_greedy": round(solution.greedy_s / solution.cost_s - 1.0, 5)}
            )
        return rows


def _seconds(call: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def _sides(problem: Problem, solution: Solution) -> dict[str, Callable[[], Any]]:
    """Ours and the peers on one problem, of which `solution` is ours."""
    sides: dict[str, Callable[[], Any]] = {
        "ours": partial(optimum.solve, problem),
        "dense": partial(_peer, "dense", peers.dense_cost_s, problem, solution),
    }
    if peers.has("ortools"):
        over_our_pairs = partial(peers.ortools_cost_s, pairs=solution.pairs)
        sides["ortools"] = partial(_peer, "OR-Tools", over_our_pairs, problem, solution)
    return sides


def _peer(name: str, cost_of: Callable[[Problem], float], problem: Problem, solution: Solution) -> None:
    """What is timed of a peer, and compared."""
    agree(solution, cost_of(problem), problem, name)


def _facts(solution: Solution) -> dict[str, Any]:
    numbers = solution.numbers
    return {
        "pairs": numbers["pairs"],
        "rounds_of_pairs": numbers["rounds"],
        "certified": solution.certified,
        "cost_s": round(solution.cost_s, 3),
    }


def agree(solution: Solution, cost_s: float, problem: Problem, peer: str) -> None:
    """Raises Disagreement unless both are the same optimum, but for a step of rounding a chosen pair."""
    if not solution.certified:
        raise Disagreement("our own plan has no certificate")
    if abs(cost_s - solution.cost_s) > (min(problem.n_rides, problem.n_drivers) + 1) / STEPS_PER_S:
        raise Disagreement(f"{peer} found {cost_s:.3f} s, we {solution.cost_s:.3f} s")


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title="batches assigned, seconds (median)", title_justify="left")
    for name in ("batch", "ours", "dense scipy", "OR-Tools, our pairs"):
        table.add_column(name, justify="left" if name == "batch" else "right")
    ours, others = result["ours"], result["peers"]
    for name in ("even", "scarce"):
        row = [f"{others.get(f'{name}_{peer}', {}).get('median_s', float('nan')):.3f}" for peer in ("dense", "ortools")]
        table.add_row(name, f"{ours[name]['median_s']:.3f}", *row)
    for line in ours["scarcity"]:
        row = [f"{line[peer]['median_s']:.3f}" if peer in line else "-" for peer in ("ours", "dense", "ortools")]
        table.add_row(f"{line['rides']} rides, {line['drivers']} drivers", *row)
    for line in ours["growth"]:
        table.add_row(f"even, {line['rides']} x {line['drivers']}", f"{line['median_s']:.3f}", "", "")
    console.print(table)
    console.print(f"event loop: {ours['loop']}")


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    return assignment_page.write(folder, result)
