from __future__ import annotations

import pytest

from dcprune.errors import OptionError
from dcprune.plugins import registry


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("cluster", "num_clusters", "0"),
        ("cluster", "prefer", "nearest"),
        ("semdedup", "eps", "-0.1"),
        ("semdedup", "prefer", "first"),
        ("prototypicality", "num_clusters", "1.5"),
        ("density", "num_neighbours", "0"),
        ("d2", "gamma_r", "-1"),
        ("difficulty", "timesteps", "0"),
        ("ccs", "beta", "1"),
        ("ccs", "num_strata", "0"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, setting: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"{setting}='{value}' of the scorer '{name}' does not fit"):
        registry().create("scorer", name, {setting: value})
