"""The decorator of all kernels in this package: that of `dedup`, which also explains the cache."""

from retrodb.dedup.numba_kernel import kernel as compiled

__all__ = ["compiled"]
