# cython: boundscheck=False, wraparound=False, cdivision=True
"""The sums behind `bandit.propensity`, compiled: for ten arms a hundred numpy calls would cost more than the arithmetic.

Owns how the integral is summed on given nodes, and the nodes where arms are few. Knows nothing of policies; where nodes
go among many arms is decided in `bandit.propensity`, whose docstrings say what is computed, why, and how exact it is.
"""

from libc.math cimport INFINITY, M_SQRT1_2, erfc, fabs
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp

from bandit._arrays cimport doubles, zeros

cnp.import_array()

__all__ = ["few", "maximum", "shares"]

FEW_ARMS = 24  # up to so many, all arms' own quantiles together cost less than looking for where they matter
NODES_PER_ARM = 16
MIN_SD = 1e-9
REACH = 5.0  # standard deviations beyond which an arm's utility is taken to be impossible
SMALL = 1e-6  # a probability not worth a thought; two arms of so small a compliance never take part at once

cdef enum:
    _FEW = 24
    _NODES = 16
    _CUTS = 128  # of the table below, a standard deviation
    _CUT_REACH = 8
    _LAST = 2 * _CUT_REACH * _CUTS
cdef double _REACH = REACH, _SMALL = SMALL, _MIN_SD = MIN_SD

# Φ by linear interpolation, increasing, within 2e-6: value and rise to the next one, side by side. Beyond ±8 it stays
# above 0.
cdef double _PHI[2 * (_LAST + 1)]


cdef void _tabulate() noexcept:
    cdef Py_ssize_t i
    for i in range(_LAST + 1):
        _PHI[2 * i] = 0.5 * erfc((_CUT_REACH - i / <double>_CUTS) * M_SQRT1_2)
    for i in range(_LAST):
        _PHI[2 * i + 1] = _PHI[2 * i + 2] - _PHI[2 * i]
    _PHI[2 * _LAST + 1] = 0.0


_tabulate()


cdef struct Arm:
    # Half of P(sampled utility ≤ u) is `share·Φ + rest`, and Φ stands in the table at `cuts·u + offset`.
    double cuts
    double offset
    double share
    double rest
    double below  # that half at the node before


cdef inline double _below(const Arm* arm, double node) noexcept nogil:
    """Half of P(sampled utility ≤ node), above 0."""
    cdef double at = arm.cuts * node + arm.offset
    cdef Py_ssize_t cell
    at = at if at > 0.0 else 0.0  # NaN, too
    at = at if at < _LAST else _LAST
    cell = <Py_ssize_t>at
    return ((at - cell) * _PHI[2 * cell + 1] + _PHI[2 * cell]) * arm.share + arm.rest


cdef void _set_arms(Arm* arms, const double* mean, const double* scale, const double* weight, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t a
    for a in range(n):
        arms[a].cuts = _CUTS / scale[a]
        arms[a].offset = _CUT_REACH * _CUTS - arms[a].cuts * mean[a]
        arms[a].share = 0.5 * weight[a]
        arms[a].rest = 0.5 - arms[a].share


cdef void _stieltjes(Arm* arms, Py_ssize_t n, const double* nodes, Py_ssize_t n_nodes, double* p, double* mass) noexcept nogil:
    """Each arm's share: its mass between neighbouring nodes times the others' mean there. `mass` is room for n numbers.

    Dividing the whole product by an arm's own factor leaves the others'.
    """
    cdef Py_ssize_t a, i
    cdef double right, middle, product, total = 0.0
    memset(p, 0, n * sizeof(double))
    for a in range(n):
        arms[a].below = _below(&arms[a], nodes[0])
    for i in range(1, n_nodes):
        product = 1.0
        for a in range(n):
            right = _below(&arms[a], nodes[i])
            middle = right + arms[a].below
            mass[a] = (right - arms[a].below) / middle
            product *= middle
            arms[a].below = right
        for a in range(n):
            p[a] += mass[a] * product
    for a in range(n):
        p[a] = p[a] if p[a] > 0.0 else 0.0  # rounding may take one without a chance below 0
        total += p[a]
    for a in range(n):
        p[a] /= total


cdef double* _merged(double* runs, double* spare, Py_ssize_t n) noexcept nogil:
    """`n` numbers, ascending in runs of the nodes of one arm, sorted; the result stands in one of the two arrays."""
    cdef Py_ssize_t width = _NODES, start, i, j, middle, end, k
    cdef bint second
    cdef double* to = spare
    while width < n:
        start = 0
        while start < n:
            middle, end = min(start + width, n), min(start + 2 * width, n)
            i, j, k = start, middle, start
            while i < middle and j < end:
                second = runs[j] < runs[i]  # without a jump, which would be guessed wrong half the time
                to[k] = runs[j] if second else runs[i]
                j += second
                i += not second
                k += 1
            memcpy(to + k, runs + i, (middle - i) * sizeof(double))
            memcpy(to + k + middle - i, runs + j, (end - j) * sizeof(double))
            start = end
        runs, to = to, runs
        width *= 2
    return runs


cdef void _few(double* mean, double* scale, double* weight, Py_ssize_t n, const double* standard, double* p) noexcept nogil:
    cdef Arm arms[_FEW]
    cdef double runs[_FEW * _NODES]
    cdef double spare[_FEW * _NODES]
    cdef double mass[_FEW]
    cdef double largest = 1.0, most = 0.0
    cdef Py_ssize_t a, i
    if n == 1:
        p[0] = 1.0
        return
    for a in range(n):
        largest = max(largest, fabs(mean[a]))
        most = max(most, weight[a])
    for a in range(n):
        scale[a] = max(scale[a], _MIN_SD * largest)
        # Where all are very unlikely to take part, only proportions matter; scaled up they are not lost in 1 − c.
        weight[a] *= max(1.0, _SMALL / most)
        for i in range(_NODES):
            runs[a * _NODES + i] = mean[a] + scale[a] * standard[a * _NODES + i]
    _set_arms(arms, mean, scale, weight, n)
    _stieltjes(arms, n, _merged(runs, spare, n * _NODES), n * _NODES, p, mass)


def few(cnp.ndarray mean, cnp.ndarray sd, cnp.ndarray compliance, cnp.ndarray standard_nodes):
    """`best_arm_probabilities` where at most 24 arms can be the best; None where more can.

    `standard_nodes` (24, 16): each arm's nodes as standard scores, ascending.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(mean), a, found = 0
    cdef const double* m = doubles(mean, n)
    cdef const double* s = doubles(sd, n)
    cdef const double* c = doubles(compliance, n)
    cdef const double* standard = doubles(standard_nodes, _FEW * _NODES)
    cdef double part[4][_FEW]
    cdef Py_ssize_t which[_FEW]
    cdef double surely = -INFINITY
    cdef bint all_take_part = n <= _FEW
    cdef cnp.ndarray result
    cdef double* p
    for a in range(n):
        all_take_part = all_take_part and c[a] != 0.0
        # An arm whose reach is below that of one that surely takes part cannot be the best (p < 1e-6).
        if c[a] > 1.0 - _SMALL:
            surely = max(surely, m[a] - _REACH * s[a])
    for a in range(n):
        if all_take_part or (m[a] + _REACH * s[a] >= surely and c[a] > 0.0):
            if found == _FEW:
                return None
            part[0][found], part[1][found], part[2][found] = m[a], s[a], c[a]
            which[found] = a
            found += 1
    result = zeros(0, n)
    p = doubles(result, n)
    _few(part[0], part[1], part[2], found, standard, part[3])
    for a in range(found):
        p[which[a]] = part[3][a]
    return result


def shares(cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray weight, cnp.ndarray nodes):
    """The Stieltjes sum over ascending nodes, shape (n_arms,), normalised; `weight`: of an arm's taking part."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(mean), n_nodes = cnp.PyArray_SIZE(nodes)
    cdef const double* m = doubles(mean, n)
    cdef const double* s = doubles(scale, n)
    cdef const double* w = doubles(weight, n)
    cdef const double* at = doubles(nodes, n_nodes)
    cdef cnp.ndarray result = zeros(0, n)
    cdef Arm* arms = <Arm*>malloc(n * (sizeof(Arm) + sizeof(double)))
    if arms == NULL:
        raise MemoryError
    _set_arms(arms, m, s, w, n)
    _stieltjes(arms, n, at, n_nodes, doubles(result, n), <double*>(arms + n))
    free(arms)
    return result


def maximum(cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray weight, cnp.ndarray nodes):
    """The distribution function of the largest sampled utility at the nodes, shape (n_nodes,)."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(mean), n_nodes = cnp.PyArray_SIZE(nodes), a, i
    cdef const double* m = doubles(mean, n)
    cdef const double* s = doubles(scale, n)
    cdef const double* w = doubles(weight, n)
    cdef const double* at = doubles(nodes, n_nodes)
    cdef cnp.ndarray result = zeros(0, n_nodes)
    cdef double* f = doubles(result, n_nodes)
    cdef Arm arm
    for i in range(n_nodes):
        f[i] = 1.0
    for a in range(n):
        _set_arms(&arm, m + a, s + a, w + a, 1)
        for i in range(n_nodes):
            f[i] *= 2.0 * _below(&arm, at[i])
    return result
