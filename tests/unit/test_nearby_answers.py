"""How drivers near a place are written down."""

from __future__ import annotations

import numpy as np

from api.markets import build_market
from api.nearby import nearby_out
from api.tags import Tags
from config.markets import MarketSettings
from geo.answers import Found
from geo.model import DriverId


def test_an_age_is_rounded_as_in_the_answer_for_many_places() -> None:
    """Half a tenth of a second is where a product and a quotient differ."""
    market = build_market(MarketSettings(id="m", center_lat=0.0, center_lon=0.0, radius_m=1000.0))
    ages_ms = np.arange(50, 20_000, 100)
    whole = np.zeros((len(ages_ms), 3), dtype=np.int64)
    whole[:, 2] = ages_ms
    found = Found(np.zeros((len(ages_ms), 5)), whole, [DriverId("d")], [("standard", 4, True, 0)])
    told = [each.age_s for each in nearby_out(found, market, frozenset(), Tags(()))]
    assert told == np.round(ages_ms / 1000.0, 1).tolist()
