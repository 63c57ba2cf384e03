"""What the arms of a pool have in common: slopes shared by all, from which each arm's own slopes deviate.

Pure linear algebra on stacked regressions. Knows nothing of heads, forgetting or time.
"""

from __future__ import annotations

from bandit._regression import common_slopes
from bandit.types import FloatArray

__all__ = ["shared_slopes"]


def shared_slopes(
    inverse: FloatArray, moment: FloatArray, precision: FloatArray, shared_precision: float
) -> tuple[FloatArray, float]:
    """Posterior mean β of the slopes all arms share, shape (d,), and `log det(I + J/κ)`, the price of having them.

    Model: `θ_a = β + δ_a` with `δ_a ~ N(0, σ²Λ⁻¹)` and `β ~ N(0, σ²κ⁻¹I)` on the slopes; intercepts are each arm's own
    (a hierarchical linear model, Lindley & Smith, 1972). With `A_a = Λ + Σ xxᵀ` and `m_a = Σ xy`, δ_a integrated out,
    arm a says `J_a = Λ − ΛA_a⁻¹Λ` and `h_a = ΛA_a⁻¹m_a` about β, so

        β = (κI + Σ_a J_a)⁻¹ Σ_a h_a,    E θ_a = A_a⁻¹(m_a + Λβ).

    Exact for one noise variance. `inverse` (n_arms, d, d) holds the A_a⁻¹, `moment` (n_arms, d) the m_a, `precision`
    (d,) the diagonal of Λ (entry 0, the intercept's, takes no part), `shared_precision` is κ > 0. One arm alone makes
    the same predictions as a single regression with prior variance `1/κ + 1/Λ`.
    """
    return common_slopes(inverse, moment, precision, shared_precision)
