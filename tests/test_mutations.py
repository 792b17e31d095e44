"""The table of planted errors fits the source, so that `benchmarks/mutations.py` can plant them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_planted_error_has_its_place_in_the_source() -> None:
    areas = tomllib.loads((ROOT / "benchmarks/mutations.toml").read_text())["area"]
    lost = [
        f"{area['file']}: {place['before']}"
        for area in areas
        for place in area["place"]
        if (ROOT / "src/counterpoint" / area["file"]).read_text().count(place["before"]) != 1
    ]
    assert lost == []
