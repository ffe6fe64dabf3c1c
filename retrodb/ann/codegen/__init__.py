"""Compiled code: numba kernels and LLVM intrinsics, each with a portable definition that tests compare it with.

Every file starts with the portable definition: plain NumPy or Python, easy to read, slow, and equal to the kernel bit for
bit. The kernels are single-threaded, release the GIL, and give bits that depend on their inputs only. Nothing outside this
package uses numba's or LLVM's internals.

===============  ===============================================================================================
module           gives
===============  ===============================================================================================
compiled         the decorator of all kernels
dot              the one float32 inner product
distances        the one distance; distances of candidates; affine maps
insertion        candidates inserted into sorted rows of nearest neighbours
excluded         whether a query forbids a neighbour
exact_insertion  the exactly nearest columns inserted: of a block, or of each query's own list
grouping         rows grouped and vectors added up by list
six_bit_codes    vectors as codes of 6 bits
code_product     distances from products of codes, by AVX2 where the processor has it
equal_rows       rows of a list with equal codes, which are compared once
list_scan        the scan of a part's lists for many queries
llvm             numba's and LLVM's internals for the intrinsics
lookup           positions of ids; numbers for distinct values
half_floats      float16 rows gathered as float32
===============  ===============================================================================================
"""
