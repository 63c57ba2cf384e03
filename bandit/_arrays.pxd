# What the compiled modules share: the numbers of a numpy array as C has them. Checked once here, trusted inside. A typed
# memoryview would take longer to make (0.7 µs) than most of these kernels take to run.

cimport numpy as cnp


cdef inline cnp.ndarray numbers(cnp.ndarray given):
    """What a caller gives, as contiguous numbers in double precision: the array itself where it is that already."""
    return cnp.PyArray_FROM_OTF(given, cnp.NPY_DOUBLE, cnp.NPY_ARRAY_CARRAY_RO)


cdef inline double* doubles(cnp.ndarray array, Py_ssize_t size) except NULL:
    """The array's own numbers; raises ValueError where it is not `size` of them in double precision, in one piece."""
    if cnp.PyArray_TYPE(array) != cnp.NPY_DOUBLE or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise ValueError("needs contiguous numbers in double precision")
    if cnp.PyArray_SIZE(array) != size:
        raise ValueError(f"needs {size} numbers, not {cnp.PyArray_SIZE(array)}")
    return <double*>cnp.PyArray_DATA(array)


cdef inline cnp.npy_bool* flags(cnp.ndarray array, Py_ssize_t size) except NULL:
    """The same for truth values."""
    if cnp.PyArray_TYPE(array) != cnp.NPY_BOOL or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise ValueError("needs contiguous truth values")
    if cnp.PyArray_SIZE(array) != size:
        raise ValueError(f"needs {size} truth values, not {cnp.PyArray_SIZE(array)}")
    return <cnp.npy_bool*>cnp.PyArray_DATA(array)


cdef inline cnp.int64_t* integers(cnp.ndarray array, Py_ssize_t size) except NULL:
    """The same for whole numbers."""
    if cnp.PyArray_TYPE(array) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise ValueError("needs contiguous whole numbers")
    if cnp.PyArray_SIZE(array) != size:
        raise ValueError(f"needs {size} whole numbers, not {cnp.PyArray_SIZE(array)}")
    return <cnp.int64_t*>cnp.PyArray_DATA(array)


cdef inline cnp.ndarray zeros(cnp.npy_intp rows, cnp.npy_intp columns):
    """A new array of shape (rows, columns), or (columns,) for no rows."""
    cdef cnp.npy_intp* shape = [rows, columns]
    return cnp.PyArray_ZEROS(2, shape, cnp.NPY_DOUBLE, 0) if rows else cnp.PyArray_ZEROS(1, shape + 1, cnp.NPY_DOUBLE, 0)
