"""Cross-attention whose keys and values are the region tokens themselves."""

from art_kernels.region_attention.module import RegionCrossAttention
from art_kernels.region_attention.operator import region_attention

__all__ = ["RegionCrossAttention", "region_attention"]
