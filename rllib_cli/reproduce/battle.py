"""Battle: mean field and independent Q-learning by self-play, then against each other."""

from __future__ import annotations

from typing import Any

EXAMPLE = "battle_crossplay"
METHODS: dict[str, dict[str, Any]] = {
    "mfq": {},
    "iql": {"neighborhood": "none"},
}
"""What is compared: entries of the config that differ from the example's."""

VARIATIONS: dict[str, dict[str, Any]] = {
    "own group's mean only": {"neighborhood": "group"},
    "those within 6 cells": {"neighborhood": {"radius": 6}},
    "paper's timing": {"mean_action_input": "current"},
    "double Q target": {"target": "double_q"},
    "dueling": {"dueling": True},
    "temperature to 0.05": {"temperature": [[0, 0.5], [4_000_000, 0.05]]},
}
"""What else was tried, as departures from `mfq`."""
