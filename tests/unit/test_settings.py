"""Settings: where they come from, what is refused, and that a person is told what to do."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from config.geojson import rings_of
from config.markets import MarketSettings
from config.secret import with_token_secret
from config.settings import ConfigError, Settings, load_settings, without_password

EXAMPLE = Path(__file__).parents[2] / "config" / "example.toml"
SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]]}
AREA: dict[str, Any] = {"id": "x", "geojson": SQUARE}
SECRET = "correct horse battery staple, and 32 bytes"
BOTH = {"HEXHAIL_REDIS_URL": "redis://h/0", "HEXHAIL_DATABASE_URL": "mysql://u:p@h/d"}


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEXHAIL_")]:
        monkeypatch.delenv(name)


def _faults(path: Path | None = None, **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_settings(path, overrides)
    return raised.value.faults


def test_without_anything_the_service_is_embedded_and_local() -> None:
    settings = load_settings()
    assert settings.is_embedded
    assert (settings.host, settings.port, settings.role, settings.workers) == ("127.0.0.1", 8080, "all", 1)
    assert [market.id for market in settings.markets] == ["new-york"]
    assert settings.store_url.startswith("sqlite+aiosqlite:////")


def test_the_example_file_says_every_default() -> None:
    settings = load_settings(EXAMPLE)
    assert settings == Settings()
    text = EXAMPLE.read_text()
    said = set(re.findall(r"^#? ?([a-z_]+) = ", text, re.MULTILINE))
    assert said == (set(Settings.model_fields) | set(MarketSettings.model_fields)) - {"markets"}


def test_command_line_goes_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hexhail.toml"
    path.write_text('port = 1\nflush_ms = 11\nlog_level = "debug"\n')
    monkeypatch.setenv("HEXHAIL_CONFIG", str(path))
    monkeypatch.setenv("HEXHAIL_PORT", "2")
    monkeypatch.setenv("HEXHAIL_FLUSH_MS", "22")
    settings = load_settings(overrides={"port": 3})
    assert (settings.port, settings.flush_ms, settings.log_level) == (3, 22, "debug")


def test_a_misspelt_variable_or_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXHAIL_PROT", "1")
    assert _faults() == ["HEXHAIL_PROT: no such setting"]
    monkeypatch.delenv("HEXHAIL_PROT")
    path = tmp_path / "f.toml"
    path.write_text('[[markets]]\nid = "a"\ncenter_lat = 1\ncenter_lon = 1\nradius_m = 9\nwindow = 1\n')
    assert _faults(path) == [f"{path}: markets[0].window: no such setting"]


def test_each_fault_names_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.toml"
    path.write_text("flush_ms = 0\n")
    monkeypatch.setenv("HEXHAIL_PORT", "99999")
    faults = _faults(path, workers=0)
    assert len(faults) == 3
    by_start = {fault.split(": ")[0]: fault for fault in faults}
    assert set(by_start) == {"--workers", "HEXHAIL_PORT", str(path)}
    assert "99999" in by_start["HEXHAIL_PORT"]


def test_a_fault_never_repeats_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", "hunter2")
    monkeypatch.setenv("HEXHAIL_REDIS_URL", "http://u:hunter2@h")
    monkeypatch.setenv("HEXHAIL_DATABASE_URL", "postgres://u:hunter2@h/d")
    faults = _faults()
    assert len(faults) == 3
    assert "hunter2" not in "\n".join(faults)


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", SECRET)
    monkeypatch.setenv("HEXHAIL_REDIS_URL", "redis://:hunter2@h/0")
    monkeypatch.setenv("HEXHAIL_DATABASE_URL", "mysql://u:hunter2@h/d")
    shown = repr(load_settings()) + str(load_settings())
    assert "hunter2" not in shown
    assert SECRET not in shown


def test_settings_reach_a_child_process_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BOTH.items():
        monkeypatch.setenv(name, value)
    sent = load_settings(overrides={"markets": [{"id": "x", "geojson": SQUARE}], "token_secret": SECRET, "workers": 3})
    monkeypatch.setenv("HEXHAIL_WORKERS", "7")
    monkeypatch.setenv("HEXHAIL_REDIS_URL", "redis://other/0")
    assert Settings.from_json(sent.to_json()) == sent


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+aiomysql://u:p%40@h:3306/d?ssl=x", "mysql+aiomysql://h:3306/d"),
        ("redis://:p@[::1]:1/0", "redis://[::1]:1/0"),
        ("unix:///run/redis.sock?password=p", "unix:/run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_usual_spellings_of_a_mysql_url_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("mysql", "mariadb", "mysql+aiomysql"):
        monkeypatch.setenv("HEXHAIL_DATABASE_URL", f"{scheme}://u:p%40w@h:33/d?ssl=1")
        assert load_settings().database_url == "mysql+aiomysql://u:p%40w@h:33/d?ssl=1"


@pytest.mark.parametrize("overrides", [{"workers": 2}, {"role": "api"}, {"role": "matcher"}])
def test_several_processes_need_both_servers(overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = _faults(**overrides)
    assert "HEXHAIL_REDIS_URL and HEXHAIL_DATABASE_URL" in fault
    for name, value in BOTH.items():
        monkeypatch.setenv(name, value)
    assert load_settings(overrides=overrides).is_shared


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"sweep_after_s": 5, "stale_after_s": 30}, "sweep_after_s"),
        ({"flush_ms": 5000, "stale_after_s": 5}, "flush_ms"),
        ({"stale_after_s": float("nan")}, "stale-after-s"),
        ({"port": "tcp://10.0.0.1:80"}, "enableServiceLinks"),
        ({"markets": []}, "at least one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: dict[str, Any], word: str) -> None:
    (fault,) = _faults(**overrides)
    assert word in fault


@pytest.mark.parametrize(
    ("text", "word"), [("port = ", "not TOML"), ("markets = 3", "markets"), ("[markets]\nid = 3", "markets")]
)
def test_a_broken_file_is_one_line(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(text)
    (fault,) = _faults(path)
    assert word in fault
    assert str(path) in fault


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    (fault,) = _faults(tmp_path / "none.toml")
    assert "No such file" in fault


def test_markets_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXHAIL_MARKETS", json.dumps([{"id": "x", "geojson": SQUARE, "window_s": 0}]))
    (market,) = load_settings().markets
    assert market.geometry == SQUARE
    monkeypatch.setenv("HEXHAIL_MARKETS", "[{")
    assert _faults() == ["HEXHAIL_MARKETS: is not JSON: a list of markets was expected"]


def test_tags_are_separated_by_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXHAIL_TAGS", "wheelchair, ev,4x4")
    assert load_settings().tags == ("wheelchair", "ev", "4x4")
    monkeypatch.setenv("HEXHAIL_TAGS", "wheelchair,Big Boot")
    (fault,) = _faults()
    assert fault.startswith("HEXHAIL_TAGS: tags[1]: ")
    assert "'Big Boot'" in fault


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"tags": ["pets", "ev", "pets"]}, "tags: pets is named twice"),
        ({"tags": [f"t{n}" for n in range(33)]}, "32"),
        ({"tags": ["t" * 25]}, "tags[0]"),
        ({"tags": [""]}, "tags[0]"),
        ({"tags": ["-x"]}, "tags[0]"),
        ({"tags": ["ev"], "markets": [AREA | {"tags": ["ev", "pets"]}]}, "market x: its tags pets are not among"),
        ({"tags": [], "markets": [AREA | {"tags": ["ev"]}]}, "are not among the tags (none)"),
        ({"markets": [AREA | {"tags": ["pets", "pets"]}]}, "twice"),
    ],
)
def test_tags_that_make_no_sense_are_refused(overrides: dict[str, Any], words: str) -> None:
    (fault,) = _faults(**overrides)
    assert words in fault


def test_two_markets_of_one_name_are_refused() -> None:
    circle = {"id": "x", "center_lat": 0, "center_lon": 0, "radius_m": 10}
    (fault,) = _faults(markets=[circle, circle])
    assert "x is named twice" in fault


def test_a_geojson_path_is_looked_up_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "Feature", "geometry": SQUARE}))
    path = tmp_path / "f.toml"
    path.write_text(
        '[[markets]]\nid = "x"\ngeojson = "area.geojson"\nzones = [{ id = "jfk", geojson = "area.geojson" }]\n'
    )
    (market,) = load_settings(path).markets
    assert market.geometry == {"type": "Feature", "geometry": SQUARE}
    assert market.zones[0].geometry == market.geometry


def test_the_road_network_is_looked_up_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    area = "center_lat = 1\ncenter_lon = 1\nradius_m = 9\n"
    path.write_text(f'[[markets]]\nid = "x"\n{area}travel = "roads"\ntravel_links = "l.csv"\n')
    (fault,) = _faults(path)
    assert fault.startswith(f"{path}: markets[0].travel_links: cannot read {tmp_path / 'l.csv'}: No such file")
    (tmp_path / "l.csv").write_text("start_lat")
    settings = load_settings(path)
    assert settings.markets[0].travel_links == str(tmp_path / "l.csv")
    assert settings.markets[0].has_ways
    assert Settings.from_json(settings.to_json()) == settings


def test_a_market_that_says_everything_reaches_a_child_process_unchanged() -> None:
    says = {
        "classes": ["standard", "comfort", "premium"],
        "downgrades": {"premium": {"standard": 120, "comfort": 60.5}, "comfort": {"standard": 0}},
        "tags": ["pets", "wheelchair"],
        "window_s": "adaptive",
        "window_s_min": 0.5,
        "window_s_max": 12,
        "travel": "osrm",
        "travel_url": "https://u:p@osrm.example:5000/v1",
        "travel_timeout_s": 0.4,
        "idle_bonus": 0.1,
        "refusal_s": 90,
        "top_speed_mps": 33,
        "assign": "offer",
        "offer_ttl_s": 20,
        "missed_offers_max": 5,
        "chain_within_s": 240,
        "chain_late_s": 120,
        "stall_after_s": 0,
        "schedule_lead_s": 1200,
    }
    sent = load_settings(overrides={"markets": [AREA | says], "token_secret": SECRET})
    assert Settings.from_json(sent.to_json()) == sent
    (market,) = sent.markets
    assert market.downgrades["premium"] == {"standard": 120.0, "comfort": 60.5}
    assert (market.is_adaptive, market.has_ways, market.profile) == (True, True, "driving")
    assert "u:p" not in repr(sent)


@pytest.mark.parametrize(
    ("travel", "profile"),
    [
        ({}, ""),
        ({"travel": "osrm", "travel_url": "http://h"}, "driving"),
        ({"travel": "valhalla", "travel_url": "http://h"}, "auto"),
        ({"travel": "valhalla", "travel_url": "http://h", "travel_profile": "taxi"}, "taxi"),
    ],
)
def test_a_travel_server_s_profile_is_that_of_its_cars_unless_named(travel: dict[str, Any], profile: str) -> None:
    assert MarketSettings(**AREA, **travel).profile == profile


CLASSES = {"classes": ["standard", "premium"]}
ZONE = {"id": "jfk", "center_lat": 1, "center_lon": 1, "radius_m": 5}


@pytest.mark.parametrize(
    ("market", "words"),
    [
        (CLASSES | {"downgrades": {"gold": {"standard": 1}}}, "'gold' is none of the classes standard, premium"),
        (CLASSES | {"downgrades": {"premium": {"tin": 1}}}, "'tin' is none of the classes"),
        (CLASSES | {"downgrades": {"premium": {"premium": 1}}}, "is no downgrade"),
        (CLASSES | {"downgrades": {"premium": {"standard": -1}}}, "downgrades.premium.standard"),
        (CLASSES | {"downgrades": {"premium": {"standard": math.inf}}}, "downgrades.premium.standard"),
        (CLASSES | {"downgrades": {"premium": {"standard": 1.1e7}}}, "downgrades.premium.standard"),
        (CLASSES | {"downgrades": {"premium": 3}}, "downgrades.premium"),
        ({"window_s": "adaptiv"}, "a number of seconds from 0 to 60, or \"adaptive\" (it says 'adaptiv')"),
        ({"window_s": 61}, "from 0 to 60"),
        ({"window_s": math.nan}, "from 0 to 60"),
        ({"window_s": True}, "from 0 to 60"),
        ({"window_s_min": 0.5}, 'window_s_min takes no effect without window_s = "adaptive"'),
        ({"window_s": 3, "window_s_max": 9}, 'window_s_max takes no effect without window_s = "adaptive"'),
        ({"window_s": "adaptive", "window_s_min": 9, "window_s_max": 8}, "window_s_min (9) is above window_s_max (8)"),
        ({"travel": "car"}, "travel"),
        ({"travel": "osrm"}, "needs travel_url"),
        ({"travel": "valhalla"}, "needs travel_url"),
        ({"travel": "roads"}, "needs travel_links"),
        ({"travel_url": "http://h"}, 'travel_url takes no effect without travel = "osrm" or "valhalla"'),
        ({"travel_timeout_s": 2}, "travel_timeout_s takes no effect"),
        ({"travel_profile": "car"}, "travel_profile takes no effect"),
        ({"travel_links": str(EXAMPLE)}, 'travel_links takes no effect without travel = "roads"'),
        ({"travel": "roads", "travel_links": str(EXAMPLE.parent)}, "Is a directory"),
        ({"travel": "roads", "travel_links": str(EXAMPLE), "travel_url": "http://h"}, "travel_url takes no effect"),
        ({"travel": "roads", "travel_links": str(EXAMPLE), "top_speed_mps": 6}, "below speed_mps (7)"),
        ({"travel": "osrm", "travel_url": "http://h", "travel_timeout_s": 0}, "travel_timeout_s"),
        ({"travel": "osrm", "travel_url": "http://h", "travel_profile": "a/b"}, "travel_profile"),
        ({"idle_bonus": -1}, "idle_bonus"),
        ({"idle_bonus_s_max": math.inf}, "idle_bonus_s_max"),
        ({"refusal_s": -0.1}, "refusal_s"),
        ({"refusal_s": 1.1e7}, "refusal_s"),
        ({"idle_bonus_s_max": 1.1e7}, "idle_bonus_s_max"),
        ({"max_pickup_s": 1.1e7}, "max_pickup_s"),
        ({"pickup_growth": -0.1}, "pickup_growth"),
        ({"pickup_growth": math.inf}, "pickup_growth"),
        ({"pickup_s_most": 3600}, "pickup_s_most takes no effect without pickup_growth"),
        ({"pickup_growth": 1, "pickup_s_most": 1.1e7}, "pickup_s_most"),
        ({"pickup_growth": 1, "pickup_s_most": 2000}, "pickup_s_most (2000) is below 2025: max_pickup_s (1800) grows"),
        ({"pickup_growth": 1, "pickup_s_most": 7201}, "pickup_s_most (7201) is above 7200, 4 times max_pickup_s"),
        ({"unmatched_base_s": 1.1e7}, "unmatched_base_s"),
        ({"top_speed_mps": 0}, "top_speed_mps"),
        ({"assign": "ask"}, "assign"),
        ({"offer_ttl_s": 20}, 'offer_ttl_s takes no effect without assign = "offer"'),
        ({"assign": "offer", "offer_ttl_s": 0}, "offer_ttl_s"),
        ({"assign": "offer", "offer_ttl_s": 601}, "offer_ttl_s"),
        ({"lost_grace_s": -1}, "lost_grace_s"),
        ({"missed_offers_max": 0}, "missed_offers_max"),
        ({"no_show_after_s": math.nan}, "no_show_after_s"),
        ({"retry_s": 1.1e7}, "retry_s"),
        ({"chain_within_s": -1}, "chain_within_s"),
        ({"chain_late_s": 60}, "chain_late_s takes no effect without chain_within_s"),
        ({"stall_after_s": math.inf}, "stall_after_s"),
        ({"stall_after_s": 0, "stall_m": 100}, "stall_m takes no effect without stall_after_s"),
        ({"schedule_lead_s": -1}, "schedule_lead_s"),
        ({"schedule_ahead_s": 1.1e7}, "schedule_ahead_s"),
        ({"guarantee_s": -1}, "guarantee_s"),
        ({"zones": [ZONE, ZONE]}, "zones: jfk is named twice"),
        ({"zones": [ZONE | {"id": "JFK"}]}, "zones[0].id"),
        ({"zones": [ZONE | {"id": "j" * 33}]}, "zones[0].id"),
        ({"zones": [ZONE | {"keep_s": -1}]}, "zones[0].keep_s"),
        ({"zones": [ZONE | {"radius": 3}]}, "zones[0].radius: no such setting"),
        ({"zones": [{"id": "jfk"}]}, "the area is missing: give center_lat"),
        ({"zones": [ZONE | {"geojson": {"type": "Point"}}]}, "an area is a Polygon"),
    ],
)
def test_what_a_market_says_in_vain_or_by_mistake_is_refused(market: dict[str, Any], words: str) -> None:
    (fault,) = _faults(markets=[AREA | market])
    assert fault.startswith("--markets[0]")
    assert words in fault.replace("-", "_")


@pytest.mark.parametrize(
    "url", ["h:5000", "ftp://h", "http://", "http://h:0", "http://h:x", "http://h?hunter2", "http://h#hunter2", ""]
)
def test_a_travel_url_that_cannot_be_is_refused_and_not_repeated(url: str) -> None:
    (fault,) = _faults(markets=[AREA | {"travel": "osrm", "travel_url": url}])
    assert "must look like http://host:5000" in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "geojson",
    [
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": [[[0, 0], [0, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [0, 1], [1, 1], [1, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 91], [0, 1], [1, 1], [0, 91]]]},
        {"type": "Polygon", "coordinates": [[["0", 0], [0, 1], [1, 1], ["0", 0]]]},
        {"type": "FeatureCollection", "features": []},
        {"type": "Feature", "geometry": None},
    ],
)
def test_a_geojson_that_is_no_area_is_refused(geojson: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rings_of(geojson)
    (fault,) = _faults(markets=[{"id": "x", "geojson": geojson}])
    assert "markets[0].geojson" in fault


@pytest.mark.parametrize(
    "market",
    [
        {"id": "x"},
        {"id": "x", "center_lat": 1, "radius_m": 5},
        {"id": "x", "center_lat": 91, "center_lon": 0, "radius_m": 5},
        {"id": "{x}", "center_lat": 1, "center_lon": 0, "radius_m": 5},
        {"id": "x", "center_lat": 1, "center_lon": 0, "radius_m": 5, "geojson": SQUARE},
        {"id": "x", "center_lat": 1, "center_lon": 0, "radius_m": 5, "deadline_s": 9000},
        {"id": "x", "center_lat": 1, "center_lon": 0, "radius_m": 5, "classes": []},
        {"id": "x", "center_lat": 1, "center_lon": 0, "radius_m": 5, "classes": ["far-too-long-a-name"]},
        {"id": "x", "center_lat": 1, "center_lon": 0, "radius_m": 5, "unmatched_base_s": 10},
    ],
)
def test_a_market_that_makes_no_sense_is_refused(market: dict[str, Any]) -> None:
    (fault,) = _faults(markets=[market])
    assert "markets" in fault


def test_an_embedded_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    settings = load_settings(overrides={"data_dir": tmp_path / "data"})
    first, second = with_token_secret(settings).token_secret, with_token_secret(settings).token_secret
    assert first is not None
    assert first == second
    assert len(first.get_secret_value()) >= 32
    (kept,) = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_processes_that_share_their_state_are_given_their_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BOTH.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="HEXHAIL_TOKEN_SECRET is not set"):
        with_token_secret(load_settings())


def test_a_data_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(overrides={"data_dir": tmp_path / "file" / "data"})
    with pytest.raises(ConfigError, match="data_dir"):
        with_token_secret(settings)


def test_the_example_is_toml_that_names_one_market() -> None:
    assert len(tomllib.loads(EXAMPLE.read_text())["markets"]) == 1
