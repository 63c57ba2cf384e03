"""Drift detectors: what they report when the mean of residuals jumps, and what survives a restart."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.drift import DriftDetectors


def jump(detectors, head, arm, before, after, *, sd=0.0, n=300, seed=0):
    """Feed n residuals around `before`, then up to 500 around `after`: (false alarms, calls until seen, change)."""
    rng = np.random.default_rng(seed)
    false_alarms = sum(detectors.update(head, arm, before + sd * rng.standard_normal()) != 0.0 for _ in range(n))
    for call in range(1, 501):
        change = detectors.update(head, arm, after + sd * rng.standard_normal())
        if change != 0.0:
            return false_alarms, call, change
    return false_alarms, None, 0.0


@pytest.mark.parametrize(("span", "before", "after"), [(1.0, 0.0, -0.6), (4.0, 0.0, 1.5), (4.0, 0.5, -1.5)])
@pytest.mark.parametrize("n", [300, 1500])
def test_a_jump_is_seen_soon_with_its_sign_and_size(span, before, after, n):
    """At least 40 values after the jump: their mean is known to 4·0.1·span/√40 = 0.064·span."""
    false_alarms, calls, change = jump(DriftDetectors(1, 1, (span,)), 0, 0, before, after, sd=0.1 * span, n=n)
    assert false_alarms == 0
    assert calls is not None
    assert 40 <= calls <= 100
    assert change == pytest.approx(after - before, abs=0.064 * span)


def test_after_a_change_the_detector_starts_anew():
    detectors = DriftDetectors(1, 1, (1.0,))
    assert jump(detectors, 0, 0, 0.0, 0.6)[1] is not None
    assert detectors.state() == [[[]]]


def test_a_small_jump_seen_late_still_has_its_sign_and_size():
    """A fifth of the span in noise of 0.45 takes longer than the 256 values that are remembered one by one."""
    late = 0
    for seed in range(6):
        _, calls, change = jump(DriftDetectors(1, 1, (1.0,)), 0, 0, 0.0, 0.2, sd=0.45, n=3000, seed=seed)
        late += calls is not None and calls > 256
        assert calls is None or change == pytest.approx(0.2, abs=0.1)
    assert late >= 1


def test_constant_residuals_are_no_drift():
    assert jump(DriftDetectors(1, 1, (1.0,)), 0, 0, 0.2, 0.2)[1] is None


def test_residuals_beyond_the_span_count_as_the_span():
    """Both values clip to +span: no change is left to see."""
    assert jump(DriftDetectors(1, 1, (1.0,)), 0, 0, 5.0, 500.0)[1] is None


def test_each_head_and_arm_has_its_own_detector():
    detectors = DriftDetectors(2, 2, (1.0, 1.0))
    for i in range(600):
        assert detectors.update(1, 0, 0.0) == 0.0
        assert detectors.update(0, 1, 0.4) == 0.0
        drifts = detectors.update(1, 1, -0.5 if i < 300 else 0.5)
        assert drifts == 0.0 or i >= 300


def test_a_restored_detector_still_sees_the_jump():
    first, second = DriftDetectors(1, 1, (1.0,)), DriftDetectors(1, 1, (1.0,))
    for _ in range(400):
        first.update(0, 0, 0.0)
    second.load(first.state())
    assert len(second.state()[0][0]) == 256  # all that is remembered
    assert jump(second, 0, 0, -0.6, -0.6, n=0)[1] is not None
