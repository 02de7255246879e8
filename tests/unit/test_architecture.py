"""The house rules that a reader may rely on: who imports whom, and how large a thing may grow.

Read from the source by `ast`; nothing is imported. Each exemption stands here
with its reason, and one that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("geo", "matcher", "api", "benchmarks", "config")
#: geo <- matcher <- api <- benchmarks; config stands apart and only the outer two know it.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "config": frozenset({"config"}),
    "geo": frozenset({"geo"}),
    "matcher": frozenset({"matcher", "geo"}),
    "api": frozenset({"api", "matcher", "geo", "config"}),
    "benchmarks": frozenset({"benchmarks", "api", "matcher", "geo", "config"}),
}
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

#: Third-party packages that only these modules may import.
ONLY_IN: Mapping[str, frozenset[str]] = {
    "h3": frozenset({"geo.cells"}),
    "pydantic": frozenset({"config"}),
    "pydantic_settings": frozenset({"config"}),
    "prometheus_client": frozenset({"api"}),
    "jwt": frozenset({"api.auth"}),
    "sqlalchemy": frozenset({"matcher", "benchmarks"}),  # the audit counts from the database, not from our word
    "alembic": frozenset({"matcher"}),
    "aiomysql": frozenset({"matcher"}),
    "pymysql": frozenset({"matcher", "benchmarks"}),
    "redis": frozenset({"geo", "matcher", "benchmarks"}),
    "numba": frozenset({"geo.compiled", "matcher.reach", "matcher.augment", "matcher.greedy"}),
    "scipy": frozenset({"geo.roads", "benchmarks"}),
    "rich": frozenset({"benchmarks"}),
}
#: Modules that are plain nouns or decisions: the standard library and their own kind only.
STDLIB_ONLY = ("geo.model", "matcher.model", "matcher.errors", "matcher.ids")
#: Decisions know no loop, client or clock: time is an argument.
PURE = (
    *STDLIB_ONLY,
    "geo.area",
    "geo.index",
    "geo.answers",
    "geo.branches",
    "geo.cells",
    "geo.compiled",
    "geo.distance",
    "geo.forward",
    "geo.kinds",
    "geo.layout",
    "geo.order",
    "geo.pack",
    "geo.records",
    "geo.search",
    "geo.table",
    "geo.tree",
    "geo.warm",
    "geo.roads",
    "geo.legs",
    "geo.breaker",
    "geo.supply",
    "matcher.policy",
    "matcher.problem",
    "matcher.graph",
    "matcher.reach",
    "matcher.augment",
    "matcher.greedy",
    "matcher.optimum",
    "matcher.sides",
    "matcher.assignment",
    "matcher.batch",
    "matcher.plan",
    "matcher.plain",
    "matcher.packing",
    "matcher.recording",
    "matcher.idleness",
    "matcher.explicit",
    "matcher.certificate",
    "matcher.replay",
    "matcher.zones",
    "matcher.zone_plan",
)
#: What a service process loads. The engine and sparse graphs, large and slow to load, are the solver's child's.
LIGHT = ("api.service", "api.launch", "matcher.dispatcher", "matcher.solver")
HEAVY = frozenset({"scipy", "matcher.optimum", "matcher.reach", "matcher.augment", "matcher.greedy"})
IMPURE_MODULES = frozenset({"asyncio", "time", "socket", "threading", "aiohttp", "redis", "sqlalchemy", "random"})
#: matcher.ids makes ids from the time and from randomness: that is its one purpose.
PURE_EXEMPT: Mapping[str, frozenset[str]] = {"matcher.ids": frozenset({"time", "random"})}

#: Where a person reads standard output: the command line and the measuring commands.
MAY_PRINT = ("api.cli", "api.launch", "api.batch_command", "benchmarks")

#: Modules outside config that touch the environment, each with its reason.
READS_ENVIRONMENT: Mapping[str, str] = {"matcher.solver": "hands its own environment on to the child it starts"}

#: Larger than allowed, each with its reason. Empty is best.
LONG_FILES: Mapping[str, str] = {}
LONG_FUNCTIONS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@cache
def modules() -> Mapping[str, Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(text, str(path)), text.count("\n"))
    return found


def imports(module: Module, *, at_start: bool = False) -> Iterator[str]:
    """Dotted names this module imports; `at_start` leaves out those inside functions and TYPE_CHECKING."""
    for node in _nodes(module.tree, at_start=at_start):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} line {node.lineno}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


def _nodes(tree: ast.AST, *, at_start: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_start and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_typing_only(node)
        ):
            continue
        yield node
        yield from _nodes(node, at_start=at_start)


def _is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """Every function with its length in lines, docstring included, decorators not."""
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}.{node.name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield inner, node.end_lineno - node.lineno + 1
        yield from _functions(node, inner)


def _within(name: str, places: frozenset[str] | tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def test_all_packages_are_read() -> None:
    assert {module.package for module in modules().values()} == set(PACKAGES)
    assert len(modules()) > 20


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in modules().values()
        if module.package == package
        for name in imports(module)
        if (top := name.partition(".")[0]) in (*PACKAGES, "tests") and top not in MAY_IMPORT[package]
    ]
    assert not wrong


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        name: {target for target in imports(module, at_start=True) if target in modules()} - {name}
        for name, module in modules().items()
    }
    settled: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in settled:
            for target in sorted(graph[name]):
                visit(target, (*way, name))
            settled.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_room(library: str) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in modules().values()
        for name in imports(module)
        if name.partition(".")[0] == library and not _within(module.name, ONLY_IN[library])
    ]
    assert not wrong


def _loaded_with(name: str) -> set[str]:
    """All that is imported when this module is, ours and others'."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        module = modules().get(ahead.pop())
        new = set() if module is None else set(imports(module, at_start=True)) - seen
        seen |= new
        ahead += new
    return seen


@pytest.mark.parametrize("name", LIGHT)
def test_a_service_process_leaves_the_engine_to_the_solvers_child(name: str) -> None:
    loaded = _loaded_with(name)
    assert "matcher.problem" in loaded
    assert not {target for target in loaded if _within(target, HEAVY)}
    assert {"matcher.optimum", "scipy.spatial"} <= _loaded_with("matcher.solver_child")


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_nouns_need_only_the_standard_library(name: str) -> None:
    others = {
        target
        for target in imports(modules()[name])
        if target.partition(".")[0] not in sys.stdlib_module_names and target not in STDLIB_ONLY
    }
    assert not others


@pytest.mark.parametrize("name", PURE)
def test_decisions_know_no_loop_client_or_clock(name: str) -> None:
    module = modules()[name]
    used = {target.partition(".")[0] for target in imports(module)}
    assert used & IMPURE_MODULES <= PURE_EXEMPT.get(name, frozenset())
    assert not [node for node in ast.walk(module.tree) if isinstance(node, ast.AsyncFunctionDef)]


def test_no_module_is_larger_than_can_be_read() -> None:
    long = {module.name for module in modules().values() if module.lines > FILE_LINES_MAX}
    assert long == set(LONG_FILES)


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        name
        for module in modules().values()
        for name, lines in _functions(module.tree, module.name)
        if lines > FUNCTION_LINES_MAX
    }
    assert long == set(LONG_FUNCTIONS)


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{module.name} line {node.lineno}"
        for module in modules().values()
        if not _within(module.name, MAY_PRINT)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_every_module_says_what_it_rules_over() -> None:
    assert not [module.name for module in modules().values() if not ast.get_docstring(module.tree)]


def test_the_environment_is_read_by_config_alone() -> None:
    readers = {
        module.name
        for module in modules().values()
        if module.package not in ("config", "benchmarks")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers == set(READS_ENVIRONMENT)
