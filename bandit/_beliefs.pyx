# cython: boundscheck=False, wraparound=False, cdivision=True
"""The arithmetic of `bandit.scorer` on all arms, compiled: predictions of the heads in, beliefs about rewards out.

Owns the scorer's formula under uncertainty. Knows nothing of how the heads were learned or what beliefs are used for.
"""

from libc.math cimport M_SQRT1_2, NAN, erfc, exp, log, log1p, sqrt

cimport numpy as cnp

from bandit._arrays cimport doubles, numbers, zeros

cnp.import_array()

__all__ = ["Beliefs", "capped_lognormal"]

cdef double _LOG_LARGEST = 80.0  # natural log of the largest number of tokens or seconds that is told from infinity


cdef inline double _phi(double z) noexcept nogil:
    return 0.5 * erfc(-z * M_SQRT1_2)


cdef inline double _capped(double log_mean, double log_sd, double log_cap, double expected, double* slope) noexcept nogil:
    cdef double z = (log_cap - log_mean) / log_sd
    slope[0] = expected * _phi(z - log_sd)
    return slope[0] + exp(min(log_cap, _LOG_LARGEST)) * _phi(-z)


def capped_lognormal(double log_mean, double log_sd, double log_cap, double expected):
    """`E[min(X, cap)]` for `log X ~ N(log_mean, log_sd²)` and its derivative by `log_mean`.

    With `z = (ln cap − m)/s`: `E[X]·Φ(z − s) + cap·(1 − Φ(z))`, the limited expected value of a lognormal (Klugman,
    Panjer & Willmot, Loss Models, appendix A); the derivative is the first term. Needs log_sd > 0; `expected` is E[X].
    """
    cdef double slope, value = _capped(log_mean, log_sd, log_cap, expected, &slope)
    return value, slope


cdef class Beliefs:
    """What the objective and the prices make of the heads' predictions.

    `weights` (quality, cost, latency) and references are the objective's. `prices` (4, n_arms): USD a token of input, a
    token of output and a call, and 1 where the price is known.
    """

    cdef double _weight_q, _weight_c, _weight_l, _cost_reference_usd, _latency_reference_s
    cdef cnp.ndarray _prices
    cdef Py_ssize_t _n_arms

    def __init__(
        self, weights, double cost_reference_usd, double latency_reference_s, cnp.ndarray prices
    ):
        self._weight_q, self._weight_c, self._weight_l = weights
        self._cost_reference_usd, self._latency_reference_s = cost_reference_usd, latency_reference_s
        self._prices, self._n_arms = numbers(prices), prices.shape[1]
        doubles(self._prices, 4 * self._n_arms)

    def of(self, cnp.ndarray mean, cnp.ndarray variance, cnp.ndarray noise, double input_tokens):
        """Shape (7, n_arms): mean and sd of the utility, quality, cost in USD, latency in s, log sds of these two.

        `mean`, `variance` (of the mean), `noise`: each (3, n_arms), as `Scorer.utilities` takes them.
        """
        mean = numbers(mean)
        variance = numbers(variance)
        noise = numbers(noise)
        cdef Py_ssize_t n = self._n_arms, a
        cdef const double* m = doubles(mean, 3 * n)
        cdef const double* v = doubles(variance, 3 * n)
        cdef const double* s = doubles(noise, 3 * n)
        cdef const double* price = doubles(self._prices, 4 * n)
        cdef cnp.ndarray result = zeros(7, n)
        cdef double* out = doubles(result, 7 * n)
        for a in range(n):
            self._one(m + a, v + a, s + a, price + a, input_tokens, out + a)
        return result

    cdef void _one(
        self, const double* mean, const double* variance, const double* noise, const double* price, double input_tokens,
        double* out,
    ) noexcept nogil:
        """One arm; its numbers stand n_arms apart."""
        cdef Py_ssize_t n = self._n_arms
        cdef double fixed_usd = input_tokens * price[0] + price[2 * n], output_usd = price[n]
        cdef double tokens_var = noise[n] + variance[n], latency_var = noise[2 * n] + variance[2 * n]
        cdef double tokens = exp(min(mean[n] + 0.5 * tokens_var, _LOG_LARGEST))
        cdef double latency_s = exp(min(mean[2 * n] + 0.5 * latency_var, _LOG_LARGEST))
        cdef double utility = self._weight_q * mean[0], spread = self._weight_q * self._weight_q * variance[0]
        cdef double scale, slope, value, log_cap, credit
        if self._weight_c > 0.0 and price[3 * n] > 0.0:
            # Output tokens (plus 1) at which the whole cost reaches its reference; beyond it there is no more to lose.
            log_cap = log1p(max(self._cost_reference_usd - fixed_usd, 0.0) / max(output_usd, 1e-30))
            # The token head predicts log(1 + tokens): scale·(X − 1).
            scale = output_usd / self._cost_reference_usd
            value = _capped(mean[n], sqrt(tokens_var), log_cap, tokens, &slope)
            credit = 1.0 + scale - fixed_usd / self._cost_reference_usd - scale * value
            utility += self._weight_c * max(credit, 0.0)
            slope *= self._weight_c * scale
            spread += slope * slope * variance[n]
        if self._weight_l > 0.0:
            scale = 1.0 / self._latency_reference_s
            value = _capped(mean[2 * n], sqrt(latency_var), log(self._latency_reference_s), latency_s, &slope)
            utility += self._weight_l * max(1.0 - scale * value, 0.0)
            slope *= self._weight_l * scale
            spread += slope * slope * variance[2 * n]
        out[0] = utility
        out[n] = sqrt(spread)
        out[2 * n] = min(max(mean[0], 0.0), 1.0)
        out[3 * n] = fixed_usd + output_usd * max(tokens - 1.0, 0.0) if price[3 * n] > 0.0 else NAN
        out[4 * n] = latency_s
        out[5 * n] = sqrt(tokens_var) if output_usd > 0.0 else 0.0
        out[6 * n] = sqrt(latency_var)
