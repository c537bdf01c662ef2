"""Clips of a bright blob on a dark background, and a model whose response maps are the brightness of the regions."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from art.data.transforms.augment import CenterCrop
from art.data.transforms.sampling import FrameSampling
from art.model.pretrained import Query

GRID, SIZE, FRAMES = 4, 32, 6
NAMES = ("blob to the right", "blob downwards", "nothing moves")


def blob_path(label, frames=FRAMES):
    """Return [frames, 2], (x, y) of the blob: along a row, along a column, or still, always at the center of a cell."""
    along = (np.arange(frames) * GRID // frames + 0.5) / GRID
    still = np.full(frames, 0.375)
    return np.stack([along if label == 0 else still, along if label == 1 else still], axis=1)


def blob_video(label, frames=FRAMES):
    """Return uint8 [frames, 3, SIZE, SIZE]."""
    y, x = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE
    path = blob_path(label, frames)
    distance = (x - path[:, 0, None, None]) ** 2 + (y - path[:, 1, None, None]) ** 2
    gray = (30 + 220 * np.exp(-distance / 0.01)).astype(np.uint8)
    return torch.from_numpy(np.repeat(gray[:, None], 3, axis=1))


class BlobModel(nn.Module):
    """Tracklet 0 responds to brightness, tracklet 1 to darkness. Predicts class 0 for every clip not of class 1."""

    def __init__(self, kind="art", tracklets=2):
        super().__init__()
        self.kind, self.tracklets = kind, tracklets
        self.num_frames, self.input_size, self.class_names = FRAMES, SIZE, list(NAMES)
        self.sampling = FrameSampling()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes = []

    @property
    def center_crop(self):
        return CenterCrop(SIZE)

    def forward(self, video, *, return_maps=False):
        self.modes.append((self.training, torch.is_grad_enabled()))
        gray = video.float().mean(2) / 255
        bright = nn.functional.adaptive_avg_pool2d(gray, GRID) * self.scale  # [B, T, h, w]
        down = bright[:, -1, -1].mean(-1) > bright[:, 0, -1].mean(-1)
        logits = torch.stack([torch.full_like(down, 1.0, dtype=torch.float32), 2.0 * down, torch.zeros(len(down))], 1)
        if self.kind == "backbone":
            assert not return_maps, "a backbone has no maps to return"
            return SimpleNamespace(logits=logits)
        maps = torch.stack([bright, 1 - bright][: self.tracklets], dim=2)
        shape = (len(video), FRAMES, self.tracklets)
        return SimpleNamespace(
            logits=logits,
            maps=maps / maps.sum((-2, -1), keepdim=True) if return_maps else None,
            saliency=torch.full(shape, 1 / FRAMES),
        )

    @property
    def num_maps(self):
        return 0 if self.kind == "backbone" else self.tracklets

    def map_queries(self, output, clip=0):
        return tuple(Query(self.class_names[k], k) for k in range(self.tracklets))


def read_blob(clip):
    return blob_video(clip.label)
