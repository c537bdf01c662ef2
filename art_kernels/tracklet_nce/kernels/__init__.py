"""Contrast across a batch in Triton: logits are taken tile by tile, forward and again backward, and never stored.

Sizes: M rows, N columns, C channels. The rows are those whose statistics, or gradients, a program takes; it walks over
tiles of [BLOCK_N, C] columns. The anchors are the rows, or TRANSPOSED the candidates: one kernel serves both.

C is cut into CHUNKS of BLOCK_C channels. With HOLD, rows stay with the program, and a tile of columns is loaded once,
for both of the products that it is in. Without it, where shared memory or registers are too few, chunks are read again
from the caches. Where registers are too few for the gradients of all channels, PARTS programs share them: each takes
the logits over all channels, and sums what it owns. `splits` programs share the columns of some rows.

A rule is a `triton.jit` function and a constant of the kernel: for each rule the compiler makes a variant of its own.

Names: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block. Strides of rows come in units of ALIGN
elements: that they are its multiples is what lets a load be 16 bytes wide.
"""

from art_kernels.tracklet_nce.kernels.backward import backward_kernel
from art_kernels.tracklet_nce.kernels.forward import combine_kernel, forward_kernel

__all__ = ["backward_kernel", "combine_kernel", "forward_kernel"]
