"""What a chip costs an hour, as published. Lists change: `anygpt plan --price` says what is really paid.

On demand and spot of us-central1 (v4: us-central2), by SkyPilot's catalog of Google's price list (github.com/
skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv at 006059e0; a slice's price over its chips), read on
2026-11-30. Spot prices change up to daily and differ between regions: v5p was 1.68 in us-east5, v6e 1.215, v5e 0.60.
The catalog has no tpu7x.
"""

from __future__ import annotations

import dataclasses

SOURCE = "list price read 2026-11-30, see anygpt_jax/planning/prices.py"


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per chip and hour; None where nothing is published."""

    region: str
    on_demand: float | None
    spot: float | None


PRICES = {
    "v4": Price("us-central2", 3.22, 0.9215),
    "v5e": Price("us-central1", 1.20, 0.2449),
    "v5p": Price("us-central1", 4.20, 0.8357),
    "v6e": Price("us-central1", 2.70, 0.5442),
    "tpu7x": Price("", None, None),
}


def rates(chip: str, paid: float | None = None) -> dict[str, float | None]:
    """Kind of price → USD per chip-hour: what is paid (`--price`), or the lists'."""
    if paid is not None:
        return {"given": paid}
    price = PRICES[chip]
    return {"on demand": price.on_demand, "spot": price.spot}


def tokens_per_dollar(tokens_per_second_per_chip: float, rate: float) -> float:
    """At `rate` USD per chip-hour, with nothing lost to saving or interruptions."""
    return 3600 * tokens_per_second_per_chip / rate
