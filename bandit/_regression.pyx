# cython: boundscheck=False, wraparound=False, cdivision=True
"""The arithmetic of `bandit.posterior.Heads` that every request and outcome needs, compiled.

Owns no state: it reads and writes the arrays of the heads it was made for, which their docstring explains.
"""

from libc.math cimport log
from libc.stdlib cimport calloc, free, malloc

cimport numpy as cnp

from bandit._arrays cimport doubles, flags, integers, numbers, zeros

cnp.import_array()

__all__ = ["Regressions", "common_slopes"]


def common_slopes(cnp.ndarray inverse, cnp.ndarray moment, cnp.ndarray precision, double shared_precision):
    """See `bandit.hierarchy.shared_slopes`."""
    inverse = numbers(inverse)
    moment = numbers(moment)
    precision = numbers(precision)
    cdef Py_ssize_t n = inverse.shape[0], d = inverse.shape[1], m = d - 1, a, i, j
    cdef const double* given = doubles(inverse, n * d * d)
    cdef const double* sums = doubles(moment, n * d)
    cdef const double* own = doubles(precision, d) + 1
    cdef cnp.ndarray result = zeros(0, d)
    cdef double* beta = doubles(result, d)
    cdef double* total = <double*>calloc(m * m + 2 * m + 1, sizeof(double))
    cdef double* signal = total + m * m
    cdef const double* row
    cdef double log_det
    if total == NULL:
        raise MemoryError
    for a in range(n):
        for i in range(d):
            row = given + (a * d + i) * d + 1
            if i > 0:
                for j in range(i - 1, m):
                    total[(i - 1) * m + j] += row[j]
            for j in range(m):
                signal[j] += row[j] * sums[a * d + i]
    for i in range(m):
        signal[i] *= own[i] / shared_precision
        for j in range(i, m):
            total[i * m + j] *= -own[i] * own[j] / shared_precision
        total[i * (m + 1)] += 1.0 + n * own[i] / shared_precision
    log_det = _invert(total, m, signal + m)
    for i in range(m):
        for j in range(m):
            beta[1 + j] += total[i * m + j] * signal[i]
    free(total)
    return result, log_det


cdef double _invert(double* a, Py_ssize_t d, double* c) noexcept nogil:
    """Replace a positive definite matrix by its inverse; returns its log determinant. `c`: room for a row.

    By sweeping one row after the other (Goodnight, 1979), in the upper half; the lower one is its mirror.
    """
    cdef Py_ssize_t i, j, k
    cdef double pivot, part, log_det = 0.0
    for k in range(d):
        pivot = a[k * d + k]
        log_det += log(pivot)
        for i in range(d):
            c[i] = a[i * d + k] if i < k else a[k * d + i]
        c[k] = 0.0
        for i in range(d):
            part = c[i] / pivot
            if part != 0.0:
                for j in range(i, d):
                    a[i * d + j] -= part * c[j]
        for i in range(d):
            if i < k:
                a[i * d + k] = c[i] / pivot
            else:
                a[k * d + i] = c[i] / pivot
        a[k * d + k] = -1.0 / pivot
    for i in range(d):
        for j in range(i, d):
            a[i * d + j] = -a[i * d + j]
            a[j * d + i] = a[i * d + j]
    return log_det


cdef class Regressions:
    """The arithmetic of one `Heads`, on its arrays; none of them may be replaced while this lives.

    Contexts are sparse (one of many categories, few of the facts), so products run over their entries that are not 0.
    """

    cdef Py_ssize_t _n_heads, _n_arms, _d, _filled
    cdef double* _gram
    cdef double* _moment
    cdef double* _square
    cdef double* _weight
    cdef double* _inverse
    cdef double* _theta
    cdef double* _noise
    cdef double* _center
    cdef double* _intercept_precision
    cdef double* _noise_weight
    cdef double* _noise_floor
    cdef double* _pooled_floor
    cdef cnp.npy_bool* _uses_slopes
    cdef cnp.int64_t* _stale
    cdef cnp.int64_t* _allowed
    cdef double* _prior_diagonal
    cdef double* _shared_precision
    cdef double* _shared
    cdef double* _moment_then
    cdef double* _then
    cdef double* _log_evidence
    cdef double* _room  # for a row
    cdef double* _x  # the entries of a context that are not 0, and where they stand
    cdef Py_ssize_t* _at
    cdef object _arrays  # that they live as long as this

    def __init__(self, heads):
        self._n_heads, self._n_arms, self._d = heads.gram.shape[:3]
        cdef Py_ssize_t n = self._n_heads * self._n_arms, d = self._d, h = self._n_heads
        self._arrays = tuple(vars(heads).values())
        self._gram = doubles(heads.gram, n * d * d)
        self._moment = doubles(heads.moment, n * d)
        self._square = doubles(heads.square, n)
        self._weight = doubles(heads.weight, n)
        self._inverse = doubles(heads._inverse, n * d * d)
        self._theta = doubles(heads._theta, n * d)
        self._noise = doubles(heads._noise, 2 * n)
        self._center = doubles(heads._center, h)
        self._intercept_precision = doubles(heads._intercept_precision, h)
        self._noise_weight = doubles(heads._noise_weight, h)
        self._noise_floor = doubles(heads._noise_floor, h)
        self._pooled_floor = doubles(heads._pooled_floor, h)
        self._uses_slopes = flags(heads.uses_slopes, h)
        self._stale = integers(heads._stale, n)
        self._allowed = integers(heads._allowed, n)
        self._prior_diagonal = doubles(heads._prior_diagonal, h * d)
        self._shared_precision = doubles(heads._shared_precision, h)
        self._shared = doubles(heads.shared, h * d)
        self._moment_then = doubles(heads._moment_then, n * d)
        self._then = doubles(heads._then, 5 * n)
        self._log_evidence = doubles(heads.log_evidence, n)
        self._room = <double*>malloc(d * sizeof(double))
        self._x = <double*>malloc(d * sizeof(double))
        self._at = <Py_ssize_t*>malloc(d * sizeof(Py_ssize_t))
        if self._room == NULL or self._x == NULL or self._at == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._room)
        free(self._x)
        free(self._at)

    def predict(self, cnp.ndarray x, double decay):
        """Shape (3, n_heads, n_arms): mean, variance of that mean, noise variance, at x (d,)."""
        cdef cnp.npy_intp* shape = [3, self._n_heads, self._n_arms]
        cdef cnp.ndarray result = cnp.PyArray_ZEROS(3, shape, cnp.NPY_DOUBLE, 0)
        cdef Py_ssize_t n = self._n_heads * self._n_arms, i, head
        cdef double* out = <double*>cnp.PyArray_DATA(result)
        cdef double precision
        self._take(x)
        for i in range(n):
            head = i // self._n_arms
            if self._uses_slopes[head]:
                out[2 * n + i] = self._noise[n + i]
                out[n + i] = out[2 * n + i] * max(self._spread(self._inverse + i * self._d * self._d), 1e-12)
                out[i] = self._center[head] + self._dot(self._theta + i * self._d)
            else:
                precision = self._intercept_precision[head] + decay * self._weight[i]
                out[2 * n + i] = self._noise[i]
                out[n + i] = self._noise[i] / precision
                out[i] = self._center[head] + decay * self._moment[i * self._d] / precision
        return result

    def expect(self, Py_ssize_t head, Py_ssize_t arm, cnp.ndarray x, double decay):
        """Posterior mean of one head of one arm at x."""
        cdef Py_ssize_t i = self._place(head, arm)
        if self._uses_slopes[head]:
            self._take(x)
            return self._center[head] + self._dot(self._theta + i * self._d)
        return self._center[head] + decay * self._moment[i * self._d] / (
            self._intercept_precision[head] + decay * self._weight[i]
        )

    def counts(self, Py_ssize_t head, double decay):
        """Discounted number of observations per arm, shape (n_arms,)."""
        cdef Py_ssize_t i, first = self._place(head, 0)
        cdef cnp.ndarray result = zeros(0, self._n_arms)
        cdef double* out = doubles(result, self._n_arms)
        for i in range(self._n_arms):
            out[i] = decay * self._weight[first + i]
        return result

    def add(self, Py_ssize_t head, Py_ssize_t arm, cnp.ndarray x, double weight, double y):
        """Add an observation y at x to the sums of one head of one arm, at this weight; O(entries of x not 0, squared).

        Returns whether there are now more observations since the last rebuild than are allowed.
        """
        cdef Py_ssize_t i = self._place(head, arm), j, k
        cdef double* moment = self._moment + i * self._d
        cdef double* row
        cdef double part
        self._take(x)
        y -= self._center[head]
        for j in range(self._filled):
            row = self._gram + (i * self._d + self._at[j]) * self._d
            part = weight * self._x[j]
            for k in range(self._filled):
                row[self._at[k]] += part * self._x[k]
            moment[self._at[j]] += (weight * y) * self._x[j]
        self._square[i] += weight * y * y
        self._weight[i] += weight
        self._stale[i] += 1
        return self._stale[i] > self._allowed[i]

    def look_at_noise(self, double decay):
        """Noise variance of the intercept-only models; few observations borrow from what the other arms have."""
        cdef Py_ssize_t head, i, first
        cdef double residuals, observations, residual, level
        for head in range(self._n_heads):
            first = head * self._n_arms
            residuals, observations = self._noise_floor[head], self._noise_weight[head]
            for i in range(first, first + self._n_arms):
                level = decay * self._moment[i * self._d]
                residual = decay * self._square[i] - level * level / (
                    self._intercept_precision[head] + decay * self._weight[i]
                )
                self._noise[i] = max(residual, 0.0)
                residuals += self._noise[i]
                observations += decay * self._weight[i]
            self._pooled_floor[head] = self._noise_weight[head] * (residuals / observations)
            for i in range(first, first + self._n_arms):
                self._noise[i] = (self._noise[i] + self._pooled_floor[head]) / (
                    self._noise_weight[head] + decay * self._weight[i]
                )

    def rebuild(self, Py_ssize_t head, Py_ssize_t arm, double decay):
        """Inverse, θ, noise and evidence of one arm's regression from its exact sums; O(d³)."""
        cdef Py_ssize_t i = self._place(head, arm), n = self._n_heads * self._n_arms, d = self._d, j
        cdef const double* gram = self._gram + i * d * d
        cdef const double* prior = self._prior_diagonal + head * d
        cdef double* inverse = self._inverse + i * d * d
        cdef double intercept_precision = decay * gram[0] + prior[0], level, log_det
        for j in range(d * d):
            inverse[j] = decay * gram[j]
        for j in range(d):
            inverse[j * (d + 1)] += prior[j]
            self._moment_then[i * d + j] = decay * self._moment[i * d + j]
        log_det = _invert(inverse, d, self._room)
        for j in range(d):
            log_det -= log(prior[j])
        level = self._moment_then[i * d]
        self._then[i] = decay * self._square[i]
        self._then[n + i] = decay * self._weight[i]
        self._then[2 * n + i] = log_det
        self._then[3 * n + i] = max(0.0, self._then[i] - level * level / intercept_precision)
        self._then[4 * n + i] = log(intercept_precision / prior[0])
        self._fit_one(head, i)

    def fit(self, Py_ssize_t head):
        """θ, noise and evidence of every arm, given the shared slopes, from what its last rebuild left."""
        cdef Py_ssize_t i, first = self._place(head, 0)
        for i in range(first, first + self._n_arms):
            self._fit_one(head, i)

    cdef void _fit_one(self, Py_ssize_t head, Py_ssize_t i) noexcept nogil:
        cdef Py_ssize_t n = self._n_heads * self._n_arms, d = self._d, j, k
        cdef const double* inverse = self._inverse + i * d * d
        cdef const double* prior = self._prior_diagonal + head * d
        cdef const double* shared = self._shared + head * d
        cdef double* theta = self._theta + i * d
        cdef double* sums = self._room
        cdef double explained = 0.0, held = 0.0, floor = self._pooled_floor[head], residual, observations, gain
        for j in range(d):
            sums[j] = self._moment_then[i * d + j] + prior[j] * shared[j]
            explained -= prior[j] * shared[j] * shared[j]
            held += shared[j] * shared[j]
            theta[j] = 0.0
        for j in range(d):
            for k in range(d):
                theta[k] += inverse[j * d + k] * sums[j]
        for j in range(d):
            explained += theta[j] * sums[j]
        # κβᵀβ, what the shared slopes' own prior adds to the sum of squares, in equal parts: without it their evidence
        # is overstated by κβᵀβ/2σ² nats.
        held *= self._shared_precision[head] / self._n_arms
        residual = max(self._then[i] - explained, 0.0) + held + floor
        observations = self._noise_weight[head] + self._then[n + i]
        self._noise[n + i] = residual / observations
        # Bishop (2006) eq. 3.86 with the noise integrated out; constants shared by both models cancel.
        gain = observations * log((self._then[3 * n + i] + floor) / residual)
        self._log_evidence[i] = 0.5 * (self._then[4 * n + i] - self._then[2 * n + i] + gain)

    cdef Py_ssize_t _place(self, Py_ssize_t head, Py_ssize_t arm) except -1:
        if not (0 <= head < self._n_heads and 0 <= arm < self._n_arms):
            raise IndexError(f"head {head}, arm {arm}")
        return head * self._n_arms + arm

    cdef int _take(self, cnp.ndarray x) except -1:
        """Note the entries of a context that are not 0."""
        cdef cnp.ndarray given = numbers(x)
        cdef const double* values = doubles(given, self._d)
        cdef Py_ssize_t j
        self._filled = 0
        for j in range(self._d):
            if values[j] != 0.0:
                self._x[self._filled] = values[j]
                self._at[self._filled] = j
                self._filled += 1
        return 0

    cdef double _dot(self, const double* row) noexcept nogil:
        cdef double total = 0.0
        cdef Py_ssize_t j
        for j in range(self._filled):
            total += row[self._at[j]] * self._x[j]
        return total

    cdef double _spread(self, const double* inverse) noexcept nogil:
        """xᵀMx of a symmetric M, from its upper half."""
        cdef double total = 0.0, even, odd
        cdef const double* row
        cdef Py_ssize_t j, k
        for j in range(self._filled):
            row = inverse + self._at[j] * self._d
            even, odd = 0.5 * row[self._at[j]] * self._x[j], 0.0  # two sums: one would wait for itself
            for k in range(j + 1, self._filled - 1, 2):
                even += row[self._at[k]] * self._x[k]
                odd += row[self._at[k + 1]] * self._x[k + 1]
            if (self._filled - j) % 2 == 0:
                even += row[self._at[self._filled - 1]] * self._x[self._filled - 1]
            total += self._x[j] * (even + odd)
        return 2.0 * total
