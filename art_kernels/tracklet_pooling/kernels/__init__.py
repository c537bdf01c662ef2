"""Text-guided tracklet pooling in Triton: similarity, softmax over time, mean over semantics and sum in one kernel.

Sizes: B videos, T frames, K tracklets, J semantics, C channels. A program has one tracklet of one video (backward, it
may have several, one after the other) and walks over tiles of [BLOCK_T, C] responses; the semantics of the video, all J
of them, stand against each tile. C is cut into CHUNKS of BLOCK_C channels. Products are of the vectors as they lie; the
norms, taken from the same tiles, divide them afterwards, so that nothing normalised is rounded to 16 bits.

Where one tile holds all frames (ONE_TILE) the softmax is taken in it. Else there are two walks: the first takes the
highest score of each semantic and the sum of exponentials, the second the weights. Each chunk of responses is read
again for what is summed, from the caches; where a tile is one chunk (HOLD) it stays in registers.

Nothing is kept for the backward pass: it takes the scores again in any case, and takes their softmax from the very
scores whose gradients it writes.

Names: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block.
"""

from art_kernels.tracklet_pooling.kernels.backward import backward_kernel
from art_kernels.tracklet_pooling.kernels.forward import forward_kernel

__all__ = ["backward_kernel", "forward_kernel"]
