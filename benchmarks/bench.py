"""Measure a part of hexhail against what one would use instead, both sides in one run.

The last line of `--json` is one object: subject, commit, machine, versions, rounds, ours, peers, ratios, noise
(ratio: relative error), noisy (those too noisy to repeat within 15%), quiet (what else the machine did), goals
(name: [measured, goal, met]), not_measured and goals_missed, a count.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.failures import NotMeasured
from benchmarks.goals import how_far
from benchmarks.machine import ROOT, commit, machine
from benchmarks.rounds import AGREEMENT, NOISE_MAX
from benchmarks.tell import Teller

#: Subject -> its module, with configure(parser), run(args) -> its part of the result, write_report(folder, result).
SUBJECTS: Mapping[str, str] = {
    "ingest": "benchmarks.bench_ingest",
    "nearest": "benchmarks.bench_nearest",
    "assignment": "benchmarks.bench_assignment",
    "requests": "benchmarks.bench_requests",
    "city": "benchmarks.bench_city",
    "memory": "benchmarks.bench_memory",
}
RESULTS = ROOT / "benchmarks" / "results.jsonl"
EXIT_GOAL_MISSED = 1
EXIT_UNUSABLE = 2
UNWATCHED = "what else it did could not be counted"
OURS = frozenset({"api", "benchmarks", "config", "geo", "matcher"})


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT", parser_class=_SubjectParser)
    for name, module_name in SUBJECTS.items():
        text = _docstring(module_name)
        subject = subjects.add_parser(name, help=text.partition("\n")[0], description=text)
        subject.module_name = module_name


class _SubjectParser(argparse.ArgumentParser):
    """Loads its subject's module when that subject is asked for: one that cannot be loaded is in no other's way."""

    module_name = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        module = self._module()
        _add_common(self, has_rounds=getattr(module, "HAS_ROUNDS", True))
        module.configure(self)
        return super().parse_known_args(args, namespace)

    def _module(self) -> Any:
        try:
            return importlib.import_module(self.module_name)
        except ModuleNotFoundError as error:
            if (line := missing_package(error)) is None:
                raise
            self.exit(EXIT_UNUSABLE, f"{line}\n")


def _docstring(module_name: str) -> str:
    """Read from its source, so that what it imports may be missing."""
    source = Path(__file__).with_name(f"{module_name.rpartition('.')[2]}.py")
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def _add_common(parser: argparse.ArgumentParser, *, has_rounds: bool) -> None:
    if has_rounds:  # its `configure` may set another default
        words = "of each side, interleaved (%(default)s)"
        parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help=words)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything that is drawn (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with plots there")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a goal is missed, or none was measured")
    parser.add_argument("--record", action="store_true", help="append the result to benchmarks/results.jsonl")


def missing_package(error: ModuleNotFoundError) -> str | None:
    """One line that says how to get it; None when it is one of ours: then something is broken."""
    package = (error.name or "").partition(".")[0]
    if not package or package in OURS:
        return None
    return f"this needs the package {package}: run `make bench`, or pip install 'hexhail[bench]'"


def run(args: argparse.Namespace) -> int:
    try:
        if args.report is not None and find_spec("matplotlib") is None:
            raise ModuleNotFoundError(name="matplotlib")
        _check_places(args)
        with _ended_in_order():
            result = measured(args)
    except ModuleNotFoundError as error:
        if (line := missing_package(error)) is None:
            raise
        return _unusable(line)
    except NotMeasured as error:
        return _unusable(str(error))
    return shown(result, args)


def _check_places(args: argparse.Namespace) -> None:
    """That what is asked for can be written, before minutes are spent on it. Raises NotMeasured."""
    try:
        if args.report is not None:
            args.report.mkdir(parents=True, exist_ok=True)
        if args.record:
            RESULTS.open("a", encoding="utf-8").close()
    except OSError as error:
        raise NotMeasured(f"cannot write there: {error}") from None


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is, so that servers are ended and folders removed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unusable(line: str) -> int:
    print(line, file=sys.stderr)
    return EXIT_UNUSABLE


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The subject's part, and how quiet the machine was meanwhile."""
    from benchmarks.quiet import Watch  # psutil may be missing

    module = importlib.import_module(SUBJECTS[args.subject])
    result: dict[str, Any] = {"subject": args.subject, "commit": commit(), "machine": machine()}
    result["rounds"] = getattr(args, "rounds", 1)
    watch = Watch()
    watch.start()
    try:
        part = module.run(args)
    finally:
        quiet = watch.stop()
    return framed(result | part, quiet.as_json() if quiet else {}, quiet.complaints() if quiet else [UNWATCHED])


def framed(result: dict[str, Any], quiet: dict[str, Any], complaints: list[str]) -> dict[str, Any]:
    """Completes what every subject's result has.

    On a machine that was busy elsewhere every ratio is noisy, unless the subject says that it times nothing.
    """
    is_timed = result.pop("is_timed", True)
    noise = {name: _finite(value) for name, value in result.get("noise", {}).items()}
    noisy = [name for name, value in noise.items() if value is not None and value > NOISE_MAX]
    if complaints and is_timed:
        noisy = list(result["ratios"])
    goals = result["goals"]
    return (
        {"not_measured": []}
        | result
        | {
            "ratios": {name: _finite(value) for name, value in result["ratios"].items()},
            "noise": noise,
            "noisy": noisy,
            "quiet": quiet | {"complaints": complaints if is_timed else []},
            "goals_missed": sum(not met for _, _, met in goals.values()),
        }
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def shown(result: dict[str, Any], args: argparse.Namespace) -> int:
    """Says which goals are met, writes what was asked for, and returns the exit code."""
    console = Teller(json=args.json).console
    for line in verdicts(result):
        console.print(line, markup=False)
    if args.report is not None:
        module = importlib.import_module(SUBJECTS[result["subject"]])
        console.print(f"written: {module.write_report(args.report, result)}", markup=False)
    if args.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    if args.json:
        print(json.dumps(result))
    is_missed = result["goals_missed"] or not result["goals"]
    return EXIT_GOAL_MISSED if args.gate and is_missed else 0


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """A line a goal: met, MISSED, or too noisy to say, and how far it is."""
    lines = []
    for name, (measured, goal, met) in result["goals"].items():
        line = f"{'met' if met else 'MISSED':<9}  {name}: {measured:g}, goal {goal:g} ({how_far(measured, goal, met)})"
        if name in result["noisy"]:
            error = result["noise"].get(name)
            line = f"too noisy  {line.rstrip()}" + (f", give or take {error:.0%}" if error is not None else "")
        lines.append(line)
    lines += [f"{'':<9}  {name}: not measured" for name in result["not_measured"]]
    lines += [f"The machine was too noisy: {each}." for each in result["quiet"]["complaints"]]
    if result.get("quick"):
        lines.append("This was a quick look, of other sizes than the goals mean: its figures say nothing.")
    if result["noisy"] and not result["quiet"]["complaints"]:
        lines.append(
            f"Too noisy to repeat within {AGREEMENT:.0%}: {', '.join(result['noisy'])}. Ask for more --rounds."
        )
    return lines
