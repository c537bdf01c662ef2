"""Region attention in Triton: each tile of regions is read once, as keys, as values and for its own statistics.

Sizes: F frames, M query rows, N regions, C channels. A program holds a [BLOCK_M, C] block of rows and walks over tiles
of [BLOCK_N, C] regions. C is cut into CHUNKS of BLOCK_C channels that are kept apart, as tuples of tiles, because one
[16, 1024] accumulator held whole makes the compiler spill: scores are summed over the chunks, outputs are not.

Where the registers are too few to hold a tile (HOLD), its chunks are read again from the caches, in loops that are not
unrolled: unrolled, the compiler would move all their loads to the front, and hold them after all. Where they are too
few even for what is summed, PARTS programs share the chunks of a result: each takes the scores over all channels, and
sums what it owns.

Names: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block. Strides of rows come in units of ALIGN
elements: that they are its multiples is what lets a load be 16 bytes wide, and one compiled variant serves all sizes
that ALIGN divides.
"""

from art_kernels.region_attention.kernels.backward import backward_kernel, backward_many_rows_kernel, delta_kernel
from art_kernels.region_attention.kernels.forward import combine_kernel, forward_kernel

__all__ = ["backward_kernel", "backward_many_rows_kernel", "combine_kernel", "delta_kernel", "forward_kernel"]
