"""`mtc_loss` in a plain training loop, without the package `art`.

    python examples/contrast_loop.py --steps 150

The slots of a small model attend to the frames of a video. Without the loss, all slots converge to the same features.
The loss repels the slots of a frame and attracts each slot to itself in the next frame. It is added to the loss of the
main task, here the reconstruction of the mean token of each frame.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from art_kernels import RegionCrossAttention, mtc_loss

CHANNELS, SLOTS, FRAMES, TOKENS = 32, 3, 6, 16


class Slots(nn.Module):
    """Maps tokens [B,T,N,C] to slots [B,T,K,C] and the mean token of each frame, reconstructed from the slots."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(0.01 * torch.randn(SLOTS, CHANNELS))
        self.attention = RegionCrossAttention(CHANNELS, 4)
        self.decode = nn.Linear(SLOTS * CHANNELS, CHANNELS)

    def forward(self, video):
        frames = video.flatten(0, 1)
        slots, _ = self.attention(self.queries.expand(len(frames), -1, -1), frames)
        return slots.unflatten(0, video.shape[:2]), self.decode(slots.flatten(1)).unflatten(0, video.shape[:2])


def train(steps, weight):
    """Return the mean cosine between slots of a frame, and of a slot in adjacent frames, after training."""
    torch.manual_seed(0)
    model = Slots()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        scene = torch.randn(16, 1, TOKENS, CHANNELS)
        video = scene + 0.3 * torch.randn(16, FRAMES, TOKENS, CHANNELS)
        slots, reconstructed = model(video)
        contrast = mtc_loss(slots, margin=0.6)  # contrast.spatial, .temporal, .tracklet, and their sum
        loss = F.mse_loss(reconstructed, video.mean(2)) + weight * contrast.total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    slots = F.normalize(slots.detach(), dim=-1)
    return contrast.spatial.item(), (slots[:, 1:] * slots[:, :-1]).sum(-1).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    for name, weight in (("without", 0.0), ("with", 0.1)):
        between, along = train(steps, weight)
        print(f"{name} the loss, mean cosine: slots of a frame {between:+.2f}, a slot in adjacent frames {along:+.2f}")


if __name__ == "__main__":
    main()
