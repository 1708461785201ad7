"""The counted cost of a step, against the lowering's and arithmetic on paper."""

import pytest

from benchmarks import roofline


@pytest.mark.usefixtures("article_model")
def test_the_bytes_are_those_of_the_lowering():
    """3,416.3 MB by `make gpu-lower`."""
    between = [cost for cost in roofline.count(64) if "->" not in cost.name]
    assert sum(cost.bytes for cost in between) == pytest.approx(3416.3e6, rel=0.01)


def test_a_floor_is_arithmetic_alone():
    costs = [
        roofline.Cost("a 1->2", 100, 1e9, channels=1),
        roofline.Cost("b 64->64", 100, 1e9, channels=64),
        roofline.Cost("norm", 1e6, 22),
    ]
    assert roofline.floor_seconds(costs, flops=50) == 4
    least, most = roofline.expected_seconds(costs, flops=50, bandwidth=10)
    assert least == pytest.approx(4 / 0.4 + 2.2)
    assert most == pytest.approx(2 / 0.25 + 2 / 0.4 + 2.2 / 0.88 + 112e-6)
