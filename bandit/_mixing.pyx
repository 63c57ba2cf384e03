# cython: boundscheck=False, wraparound=False, cdivision=True
"""What a policy's probabilities go through on their way to the draw, compiled: floors, caps, probes, the draw itself.

Knows nothing of why an arm is capped or probed: `bandit.thompson`, `bandit.policy` and `bandit.filters` say that.
"""

from libc.math cimport sqrt

cimport numpy as cnp

from bandit._arrays cimport doubles, flags, numbers, zeros

cnp.import_array()

__all__ = ["drawn", "floored", "shaped", "tempered"]


def tempered(cnp.ndarray sd, cnp.ndarray count, double enough, double least):
    """Each sd times `√(enough/count)`, held between `least` and 1."""
    sd = numbers(sd)
    count = numbers(count)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(sd), a
    cdef const double* s = doubles(sd, n)
    cdef const double* c = doubles(count, n)
    cdef cnp.ndarray result = zeros(0, n)
    cdef double* out = doubles(result, n)
    for a in range(n):
        out[a] = s[a] * max(sqrt(enough / max(c[a], enough)), least)
    return result


def floored(cnp.ndarray p, cnp.ndarray feasible, double floor, cnp.ndarray weights):
    """See `bandit.policy.with_floor`; `weights` may be None."""
    p = numbers(p)
    weights = None if weights is None else numbers(weights)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(p), a, count = 0
    cdef const double* given = doubles(p, n)
    cdef const cnp.npy_bool* open_to = flags(feasible, n)
    cdef const double* weight = NULL if weights is None else doubles(weights, n)
    cdef cnp.ndarray result = zeros(0, n)
    cdef double* out = doubles(result, n)
    cdef double total = 0.0
    for a in range(n):
        count += open_to[a]
    for a in range(n):
        if open_to[a]:
            out[a] = floor / count if weight == NULL else floor / count * weight[a]
            total += out[a]
    if weight == NULL:
        total = floor
    for a in range(n):
        out[a] += (1.0 - total) * given[a]
    return result


def shaped(
    cnp.ndarray p, cnp.ndarray capped, cnp.ndarray refuge, double cap, cnp.ndarray probes, double most, cnp.ndarray allowed
):
    """Probabilities with `capped` arms at `cap` at most, what that leaves going to the `refuge`, if there is one, in
    proportion to what it has; then with `probes` (shares of their own, `most` together) mixed in.

    `allowed` False: no refuge and no probe; None: all are. `capped` None: probes alone.
    """
    p = numbers(p)
    probes = numbers(probes)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(p), a
    cdef const double* given = doubles(p, n)
    cdef const double* probe = doubles(probes, n)
    cdef const cnp.npy_bool* open_to = NULL if allowed is None else flags(allowed, n)
    cdef cnp.ndarray result = zeros(0, n)
    cdef double* out = doubles(result, n)
    cdef double total = 0.0, scale
    for a in range(n):
        out[a] = given[a]
        if open_to == NULL or open_to[a]:
            total += probe[a]
    if capped is not None:
        _cap(out, n, flags(capped, n), flags(refuge, n), open_to, cap)
    if total > 0.0:
        scale = min(1.0, most / total)
        for a in range(n):
            out[a] *= 1.0 - total * scale
            if open_to == NULL or open_to[a]:
                out[a] += probe[a] * scale
    return result


cdef void _cap(
    double* p, Py_ssize_t n, const cnp.npy_bool* capped, const cnp.npy_bool* refuge, const cnp.npy_bool* allowed, double cap
) noexcept nogil:
    cdef double kept = 0.0, total = 0.0, excess
    cdef Py_ssize_t a, places = 0
    cdef bint over = False
    for a in range(n):
        over = over or (capped[a] and p[a] > cap)
        if refuge[a] and (allowed == NULL or allowed[a]):
            places += 1
    if not over or places == 0:
        return
    for a in range(n):
        if capped[a] and p[a] > cap:
            p[a] = cap
        total += p[a]
        if refuge[a] and (allowed == NULL or allowed[a]):
            kept += p[a]
    excess = max(0.0, 1.0 - total)
    for a in range(n):
        if refuge[a] and (allowed == NULL or allowed[a]):
            p[a] += excess * (p[a] / kept if kept > 0.0 else 1.0 / places)


def drawn(cnp.ndarray p, double u):
    """The arm that a uniform `u` in [0, 1) draws from weights p ≥ 0, not all 0."""
    p = numbers(p)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(p), a, last = -1
    cdef const double* weight = doubles(p, n)
    cdef double total = 0.0, reached = 0.0
    for a in range(n):
        total += weight[a]
    u *= total
    for a in range(n):
        reached += weight[a]
        if reached > u:
            return a
        if weight[a] > 0.0:
            last = a
    if not last >= 0:
        raise ValueError("no arm has a probability")
    return last  # the product above was rounded up to the total
