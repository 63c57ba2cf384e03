# cython: boundscheck=False, wraparound=False, cdivision=True
"""The arithmetic of `bandit.posterior.Heads` that every request and outcome needs, compiled.

Owns no state: it reads and writes the arrays of the heads it was made for, which their docstring explains.
"""

from libc.stdlib cimport free, malloc

cimport numpy as cnp

from bandit._arrays cimport doubles

cnp.import_array()

__all__ = ["Regressions"]


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
    cdef double* _x  # the entries of a context that are not 0, and where they stand
    cdef Py_ssize_t* _at
    cdef object _arrays  # that they live as long as this

    def __init__(self, heads):
        self._n_heads, self._n_arms, self._d = heads.gram.shape[:3]
        cdef Py_ssize_t n = self._n_heads * self._n_arms, d = self._d, h = self._n_heads
        cdef cnp.ndarray uses_slopes = heads.uses_slopes
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
        if cnp.PyArray_TYPE(uses_slopes) != cnp.NPY_BOOL or cnp.PyArray_SIZE(uses_slopes) != h:
            raise ValueError("needs a flag for each head")
        self._uses_slopes = <cnp.npy_bool*>cnp.PyArray_DATA(uses_slopes)
        self._x = <double*>malloc(d * sizeof(double))
        self._at = <Py_ssize_t*>malloc(d * sizeof(Py_ssize_t))
        if self._x == NULL or self._at == NULL:
            raise MemoryError

    def __dealloc__(self):
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

    def add(self, Py_ssize_t head, Py_ssize_t arm, cnp.ndarray x, double weight, double y):
        """Add an observation y at x to the sums of one head of one arm, at this weight; O(entries of x not 0, squared)."""
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

    cdef Py_ssize_t _place(self, Py_ssize_t head, Py_ssize_t arm) except -1:
        if not (0 <= head < self._n_heads and 0 <= arm < self._n_arms):
            raise IndexError(f"head {head}, arm {arm}")
        return head * self._n_arms + arm

    cdef int _take(self, cnp.ndarray x) except -1:
        """Note the entries of a context that are not 0."""
        cdef const double* values = doubles(x, self._d)
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
