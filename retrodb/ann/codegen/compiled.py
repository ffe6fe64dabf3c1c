"""The decorator of all kernels in this package: the one that `dedup` uses, too.

numba keeps compiled code in a cache file for each source file, and checks the date of that file only. After a change to a
kernel that others call, delete the callers' cache files (`__pycache__/*.nb?`); a released package needs no such care.
"""

from retrodb.dedup.kernel import kernel as compiled

__all__ = ["compiled"]
