# cython: boundscheck=False, wraparound=False, cdivision=True
"""The sums behind `bandit.propensity`, compiled: for ten arms a hundred numpy calls would cost more than the arithmetic.

Owns how the integral is summed on given nodes, and the nodes where arms are few. Knows nothing of policies; where nodes
go among many arms is decided in `bandit.propensity`, whose docstrings say what is computed, why, and how exact it is.
"""

from libc.math cimport INFINITY, M_SQRT1_2, erfc, fabs
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cimport numpy as cnp

from bandit._arrays cimport doubles, numbers, zeros

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


cdef void _below(double mean, double scale, double weight, const double* nodes, Py_ssize_t n, double* half) noexcept nogil:
    """Half of P(sampled utility ≤ node) at each node, above 0: all nodes of one arm in turn, so that jumps are foreseen."""
    cdef double cuts = _CUTS / scale, offset = _CUT_REACH * _CUTS - cuts * mean, share = 0.5 * weight, at
    cdef double rest = 0.5 - share
    cdef Py_ssize_t i, cell
    for i in range(n):
        at = cuts * nodes[i] + offset
        at = at if at > 0.0 else 0.0  # NaN, too
        at = at if at < _LAST else _LAST
        cell = <Py_ssize_t>at
        half[i] = ((at - cell) * _PHI[2 * cell + 1] + _PHI[2 * cell]) * share + rest


cdef int _stieltjes(
    const double* mean, const double* scale, const double* weight, Py_ssize_t n, const double* nodes, Py_ssize_t n_nodes,
    double* p,
) except -1:
    """Each arm's share: its mass between neighbouring nodes times the others' mean there.

    Dividing the whole product by an arm's own factor leaves the others'.
    """
    cdef double* room = <double*>malloc((n + 1) * n_nodes * sizeof(double))
    cdef double* product = room + n * n_nodes
    cdef const double* half
    cdef double even, odd, total = 0.0
    cdef Py_ssize_t a, i
    if room == NULL:
        raise MemoryError
    for i in range(n_nodes - 1):
        product[i] = 1.0
    for a in range(n):
        half = room + a * n_nodes
        _below(mean[a], scale[a], weight[a], nodes, n_nodes, room + a * n_nodes)
        for i in range(n_nodes - 1):
            product[i] *= half[i + 1] + half[i]
    for a in range(n):
        half = room + a * n_nodes
        even, odd = 0.0, 0.0  # two sums: one would wait for itself
        for i in range(0, n_nodes - 2, 2):
            even += (half[i + 1] - half[i]) / (half[i + 1] + half[i]) * product[i]
            odd += (half[i + 2] - half[i + 1]) / (half[i + 2] + half[i + 1]) * product[i + 1]
        if n_nodes % 2 == 0:
            i = n_nodes - 2
            even += (half[i + 1] - half[i]) / (half[i + 1] + half[i]) * product[i]
        p[a] = even + odd if even + odd > 0.0 else 0.0  # rounding may take one without a chance below 0
        total += p[a]
    for a in range(n):
        p[a] /= total
    free(room)
    return 0


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
                to[k] = min(runs[i], runs[j])
                j += second
                i += 1 - second
                k += 1
            memcpy(to + k, runs + i, (middle - i) * sizeof(double))
            memcpy(to + k + middle - i, runs + j, (end - j) * sizeof(double))
            start = end
        runs, to = to, runs
        width *= 2
    return runs


cdef int _few(double* mean, double* scale, double* weight, Py_ssize_t n, const double* standard, double* p) except -1:
    cdef double runs[_FEW * _NODES]
    cdef double spare[_FEW * _NODES]
    cdef double largest = 1.0, most = 0.0
    cdef Py_ssize_t a, i
    if n == 1:
        p[0] = 1.0
        return 0
    for a in range(n):
        largest = max(largest, fabs(mean[a]))
        most = max(most, weight[a])
    for a in range(n):
        scale[a] = max(scale[a], _MIN_SD * largest)
        # Where all are very unlikely to take part, only proportions matter; scaled up they are not lost in 1 − c.
        weight[a] *= max(1.0, _SMALL / most)
        for i in range(_NODES):
            runs[a * _NODES + i] = mean[a] + scale[a] * standard[a * _NODES + i]
    return _stieltjes(mean, scale, weight, n, _merged(runs, spare, n * _NODES), n * _NODES, p)


def few(cnp.ndarray mean, cnp.ndarray sd, cnp.ndarray compliance, cnp.ndarray standard_nodes):
    """`best_arm_probabilities` where at most 24 arms can be the best; None where more can.

    `standard_nodes` (24, 16): each arm's nodes as standard scores, ascending.
    """
    mean = numbers(mean)
    sd = numbers(sd)
    compliance = numbers(compliance)
    standard_nodes = numbers(standard_nodes)
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
    mean = numbers(mean)
    scale = numbers(scale)
    weight = numbers(weight)
    nodes = numbers(nodes)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(mean), n_nodes = cnp.PyArray_SIZE(nodes)
    cdef const double* m = doubles(mean, n)
    cdef const double* s = doubles(scale, n)
    cdef const double* w = doubles(weight, n)
    cdef const double* at = doubles(nodes, n_nodes)
    cdef cnp.ndarray result = zeros(0, n)
    if n_nodes < 2:
        raise ValueError("needs two nodes")
    _stieltjes(m, s, w, n, at, n_nodes, doubles(result, n))
    return result


def maximum(cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray weight, cnp.ndarray nodes):
    """The distribution function of the largest sampled utility at the nodes, shape (n_nodes,)."""
    mean = numbers(mean)
    scale = numbers(scale)
    weight = numbers(weight)
    nodes = numbers(nodes)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(mean), n_nodes = cnp.PyArray_SIZE(nodes), a, i
    cdef const double* m = doubles(mean, n)
    cdef const double* s = doubles(scale, n)
    cdef const double* w = doubles(weight, n)
    cdef const double* at = doubles(nodes, n_nodes)
    cdef cnp.ndarray result = zeros(0, n_nodes)
    cdef double* f = doubles(result, n_nodes)
    cdef double* half = <double*>malloc((n_nodes + 1) * sizeof(double))
    if half == NULL:
        raise MemoryError
    for i in range(n_nodes):
        f[i] = 1.0
    for a in range(n):
        _below(m[a], s[a], w[a], at, n_nodes, half)
        for i in range(n_nodes):
            f[i] *= 2.0 * half[i]
    free(half)
    return result
