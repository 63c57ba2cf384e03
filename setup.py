"""What pyproject.toml cannot say: the compiled modules need numpy's headers, which are where numpy is installed."""

from numpy import get_include
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            f"bandit.{name}",
            [f"bandit/{name}.pyx"],
            depends=["bandit/_arrays.pxd"],
            include_dirs=[get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            extra_compile_args=["-O3"],
        )
        for name in ("_beliefs", "_mixing", "_quadrature", "_regression")
    ]
)
