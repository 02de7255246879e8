"""What is committed works anywhere: no address of a registry, no path of one machine, locks with hashes."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
#: A package registry's host, in pieces so that this file does not find itself.
REGISTRIES = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", r"registry\.n" + r"pmjs", "deb" + r"ian\.org"])
)
LOCAL_PATHS = re.compile(
    r"(?<![\w.])/(?:" + "|".join(["ho" + "me", "ro" + "ot", "Us" + "ers", "wo" + "rk", "op" + "t/pypi"]) + r")/\w"
)


def _committed() -> list[Path]:
    """Text files that are committed, or would be: what git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or not a repository: nothing says what is committed")
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("pattern", [REGISTRIES, LOCAL_PATHS], ids=["registries", "paths"])
def test_nothing_committed_names_one_machines_surroundings(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _committed()
        for number, line in enumerate(_text(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_the_patterns_find_what_they_are_for() -> None:
    assert REGISTRIES.search("--index-url https://" + "py" + "pi.org/simple")
    assert LOCAL_PATHS.search("open('/ho" + "me/someone/x')")
    assert not LOCAL_PATHS.search("a GET of /v1/rides or ./wo" + "rk/x")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_exactly_with_hashes_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    entries = text.replace("\\\n", " ").splitlines()
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[\w.!+]+ .*--hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    assert not re.search(r"://|--index|--find-links|--extra|--trusted|file:", text)


def test_the_locks_agree_on_versions() -> None:
    runtime = _pins(ROOT / "requirements" / "runtime.txt")
    for lock in LOCKS:
        pins = _pins(lock)
        assert runtime <= pins, f"{lock.name} lacks {sorted(runtime - pins)}"


def test_every_declared_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["test"]}
    names = {re.split(r"[\[<>=;! ]", line)[0].lower().replace("_", "-") for line in declared}
    locked = {pin.partition("==")[0] for pin in _pins(ROOT / "requirements" / "test.txt")}
    assert names <= locked


def test_pymysql_is_held_where_aiomysql_works_with_it() -> None:
    (version,) = [pin for pin in _pins(ROOT / "requirements" / "runtime.txt") if pin.startswith("pymysql==")]
    assert tuple(map(int, version.partition("==")[2].split(".")[:2])) < (1, 2)


def _pins(lock: Path) -> set[str]:
    return {match[0].split("[")[0] for match in re.finditer(r"^[a-z0-9._-]+==[\w.!+]+", lock.read_text(), re.MULTILINE)}


def test_ruff_and_mypy_have_no_blanket_exemptions() -> None:
    """An `ignore` names its rule: a bare one hides the next fault too."""
    bare = re.compile(r"#\s*(?:type:\s*ignore|noqa)\s*(?:$|[^\[:\s])")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _committed()
        if path.suffix == ".py"
        for number, line in enumerate(_text(path).splitlines(), 1)
        if bare.search(line) and "re.compile" not in line
    ]
    assert not found


def test_the_compose_file_holds_no_secret_and_pins_its_images() -> None:
    text = (ROOT / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"hexhail", "redis", "mysql"}
    for name, service in services.items():
        assert re.search(r":\d|:local$", service["image"]), name
    for name in ("PASSWORD", "SECRET"):
        for value in re.findall(rf"\b\w*{name}: (.+)", text):
            assert (value.startswith("${") and ":?" in value) or value == '"yes"', value
    assert all("healthcheck" in services[name] for name in ("redis", "mysql"))


def test_the_image_is_pinned_locked_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert all(
        re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    )
    assert "--require-hashes -r requirements/runtime.txt" in text
    assert re.search(r"^USER \d{4,}$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    copied = set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
    assert copied == {"geo", "matcher", "api", "benchmarks", "config"}
