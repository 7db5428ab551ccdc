"""Paired differences: known values, and the false verdicts that Holm's correction allows."""

import numpy as np
import pytest
from scipy import stats
from studies.comparison.paired import difference, holm, verdict

# Student, "The probable error of a mean" (1908), section IX: additional hours of sleep of ten
# patients with two drugs.
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def test_a_known_difference():
    """Mean 1.58, t = 4.0621, p = 0.002833, interval 0.70 to 2.46 in every textbook."""
    own, base = dict(enumerate(SECOND)), dict(enumerate(FIRST))
    found = difference(own, base)
    assert found is not None
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert found.pairs == 10


def test_pairs_are_those_of_the_same_seed():
    found = difference({0: 0.5, 1: 0.25, 7: 9.0}, {1: 0.0, 0: 0.0, 3: 9.0})
    assert found is not None
    assert (found.mean, found.pairs) == (0.375, 2)
    assert difference({0: 1.0, 1: 1.0}, {0: 0.0}) is None


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_equal_differences(shift, p):
    found = difference({0: 0.5 + shift, 1: 0.75 + shift}, {0: 0.5, 1: 0.75})
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (shift, shift, shift, p)


def test_holm():
    """Holm (1979): 0.01, 0.04, 0.03, 0.005 times 4, 3, 2, 1 in their order, never decreasing."""
    corrected = holm([0.01, 0.04, 0.03, 0.005], 4)
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.5], 10) == pytest.approx([0.1, 1.0])  # eight claims are not tested yet
    assert holm([], 3) == []


def test_verdicts():
    assert [verdict(0.01, 0.049), verdict(-0.01, 0.049)] == ["better", "worse"]
    assert verdict(0.01, 0.05) == "no difference shown"


def test_the_interval_covers_and_wrong_verdicts_are_rare():
    """Five pairs, ten claims, no difference: 95 % of the intervals contain 0."""
    random = np.random.default_rng(0)
    values = random.normal(size=(400, 10, 5))
    found = [
        [difference(dict(enumerate(v)), dict.fromkeys(range(5), 0.0)) for v in vs] for vs in values
    ]
    inside = np.mean([[d.low <= 0 <= d.high for d in ds] for ds in found])
    assert inside == pytest.approx(0.95, abs=0.015)
    wrong = [min(holm([d.p for d in ds], 10)) < 0.05 for ds in found]
    low, high = stats.binom.interval(0.999, 400, 0.05)
    assert low <= sum(wrong) <= high
    uncorrected = [min(d.p for d in ds) < 0.05 for ds in found]
    assert np.mean(uncorrected) > 0.3
