"""Measure a part of hexhail against what one would use instead, both sides in one run.

The last line of `--json` is one object: subject, commit, machine, versions, rounds, ours, peers, ratios,
goals (name: [measured, goal, met]) and goals_missed, their count.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive_int
from benchmarks.machine import commit, machine

#: Subject -> its module, with configure(parser), run(args) -> its part of the result, write_report(folder, result).
SUBJECTS: Mapping[str, str] = {"assignment": "benchmarks.bench_assignment"}
RESULTS = Path("benchmarks") / "results.jsonl"
EXIT_GOAL_MISSED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, module_name in SUBJECTS.items():
        module = importlib.import_module(module_name)
        text = (module.__doc__ or "").strip().partition("\n")[0]
        subject = subjects.add_parser(name, help=text, description=module.__doc__)
        subject.add_argument(
            "--rounds", type=positive_int, default=3, metavar="N", help="of each side, interleaved (3)"
        )
        subject.add_argument("--seed", type=int, default=1, metavar="N", help="of everything that is drawn (1)")
        subject.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        subject.add_argument("--report", type=Path, metavar="DIR", help="write a page with plots there")
        subject.add_argument("--gate", action="store_true", help="exit 1 when a goal is missed")
        subject.add_argument("--record", action="store_true", help=f"append the result to {RESULTS}")
        module.configure(subject)


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(SUBJECTS[args.subject])
    result: dict[str, Any] = {"subject": args.subject, "commit": commit(), "machine": machine(), "rounds": args.rounds}
    result |= module.run(args)
    result["goals_missed"] = sum(not met for _, _, met in result["goals"].values())
    for name, (measured, goal, met) in result["goals"].items():
        print(f"{'met   ' if met else 'MISSED'}  {name}: {measured:g}, goal {goal:g}")
    if args.report is not None:
        print(f"written: {module.write_report(args.report, result)}")
    if args.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    if args.json:
        print(json.dumps(result))
    return EXIT_GOAL_MISSED if args.gate and result["goals_missed"] else 0
