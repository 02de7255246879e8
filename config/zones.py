"""What an operator says of a zone: a place in a market, such as an airport, whose drivers queue for its rides.

Its area is a circle (`center_lat`, `center_lon`, `radius_m`) or GeoJSON (`geojson`: a file's path or the object
itself), as a market's. This module checks what was said and knows nothing of how it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from config.geojson import Latitude, Longitude, check_one_area, read_geojson

ZoneName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


class ZoneSettings(BaseModel):
    """One zone. Where zones overlap, the one that stands first takes the driver, and the ride."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: ZoneName
    center_lat: Latitude | None = None
    center_lon: Longitude | None = None
    radius_m: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    geojson: str | dict[str, Any] | None = Field(default=None, repr=False)
    keep_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 120.0  # of a driver not seen inside

    @field_validator("geojson", mode="after")
    @classmethod
    def _read_geojson(cls, value: str | dict[str, Any] | None) -> dict[str, Any] | None:
        return read_geojson(value)

    @model_validator(mode="after")
    def _check_area(self) -> Self:
        check_one_area(self.geojson, self.center_lat, self.center_lon, self.radius_m)
        return self

    @property
    def geometry(self) -> dict[str, Any] | None:
        """The GeoJSON object, read and checked; None for a circle."""
        return self.geojson if isinstance(self.geojson, dict) else None


def check_ids_differ(zones: Sequence[ZoneSettings]) -> None:
    """Raises ValueError naming the ids that two zones have."""
    ids = [zone.id for zone in zones]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"zones: {', '.join(twice)} is named twice")
