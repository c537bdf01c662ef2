"""The multilevel tracklet contrastive loss in Triton: its terms, and the gradients of each, in one reading.

Sizes: B videos, T frames, K tracklets, C channels. Rows of one block are whole frames of one video: their dot products
are one small matrix product, from which all cosines of a frame follow; it never leaves the registers. The channels are
walked over twice, for the products and for the gradients; the second time they come from the caches.

What is saved for the backward pass is the gradient of each term's *sum*: so the backward pass is a scaled sum for any
weighting of the terms, and small numbers do not vanish in 16 bits.
"""

from art_kernels.tracklet_contrast.kernels.flattened import flattened_kernel
from art_kernels.tracklet_contrast.kernels.levels import levels_kernel
from art_kernels.tracklet_contrast.kernels.mean import mean_kernel
from art_kernels.tracklet_contrast.kernels.sums import terms_kernel, weigh_kernel

__all__ = ["flattened_kernel", "levels_kernel", "mean_kernel", "terms_kernel", "weigh_kernel"]
