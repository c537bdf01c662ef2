"""Cross-attention whose keys and values are the region tokens themselves."""

from art_kernels.region_attention.functional import region_attention
from art_kernels.region_attention.module import RegionCrossAttention

__all__ = ["RegionCrossAttention", "region_attention"]
