"""What a net costs, against numbers worked out by hand."""

from __future__ import annotations

from unit.graph.builders import every_operation

from labkit.graph.costs import costs


def test_costs_of_every_operation() -> None:
    counted = costs(every_operation())
    # conv: 4 x 6 x 6 outputs of 1 x 3 x 3 products; point: 4 x 3 x 3 of 4; fc: 3 of 8
    assert dict(counted.macs) == {"conv": 144 * 9, "point": 36 * 4, "fc": 24}
    assert dict(counted.bops) == {"conv": 1296 * 8 * 8, "point": 144 * 4 * 8, "fc": 24 * 1 * 8}
    assert dict(counted.weight_bytes) == {"conv": 36, "point": 8, "fc": 12}
    assert dict(counted.bias_bytes) == {"conv": 16, "point": 16, "fc": 12}
    assert (counted.total_macs, counted.total_bops, counted.size_bytes) == (1464, 87_744, 100)
