"""The multilevel tracklet contrastive loss."""

from art_kernels.tracklet_contrast.functional import MTCLoss, mtc_loss

__all__ = ["MTCLoss", "mtc_loss"]
