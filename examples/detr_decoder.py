"""`RegionCrossAttention` in a DETR-style decoder, and `linear_assignment` as its Hungarian matcher.

    python examples/detr_decoder.py --steps 200

A small detector learns to locate the bright squares in synthetic images. Object queries attend to the tokens of an
image, with position embeddings added only to the keys (`key_position`); the folded attention does not project the
tokens. The state dict is that of the same decoder with `nn.MultiheadAttention`, and the outputs are equal.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from art_kernels import RegionCrossAttention, linear_assignment

SIZE, CELLS, WIDTH, HEADS, QUERIES = 32, 8, 64, 4, 3


class PlainCrossAttention(nn.MultiheadAttention):
    """The attention of published DETRs, with the interface of `RegionCrossAttention`."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads, batch_first=True)

    def forward(self, queries, regions, *, key_position):
        return super().forward(queries, regions + key_position, regions, need_weights=False)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the tokens, and an MLP; post-norm, as in DETR."""

    def __init__(self, attention):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attention = attention(WIDTH, HEADS)
        self.feedforward = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x, query, tokens, position):
        q = x + query
        x = self.norms[0](x + self.self_attention(q, q, x, need_weights=False)[0])
        x = self.norms[1](x + self.cross_attention(x + query, tokens, key_position=position)[0])
        return self.norms[2](x + self.feedforward(x))


class Detector(nn.Module):
    """Maps images [B,1,32,32] to boxes [B,3,4]: center, height, and width, relative to the image size."""

    def __init__(self, attention=RegionCrossAttention):
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(1, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, WIDTH, 3, padding=1))
        self.position = nn.Parameter(0.1 * torch.randn(CELLS * CELLS, WIDTH))
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.layers = nn.ModuleList(DecoderLayer(attention) for _ in range(2))
        self.box = nn.Linear(WIDTH, 4)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        query = self.queries.expand(len(images), -1, -1)
        x = torch.zeros_like(query)
        for layer in self.layers:
            x = layer(x, query, tokens, self.position)
        return self.box(x).sigmoid()


def draw(count, generator):
    """Return images with one bright square in each of three quadrants, and their boxes."""
    images, boxes = torch.zeros(count, 1, SIZE, SIZE), torch.empty(count, QUERIES, 4)
    for image, image_boxes in zip(images, boxes, strict=True):
        for box, quadrant in zip(image_boxes, torch.randperm(4, generator=generator)[:QUERIES].tolist(), strict=True):
            side = int(torch.randint(4, 9, (), generator=generator))
            top, left = (torch.randint(0, 17 - side, (2,), generator=generator)).tolist()
            top, left = top + 16 * (quadrant // 2), left + 16 * (quadrant % 2)
            image[0, top : top + side, left : left + side] = 1
            box[:] = torch.tensor([top + side / 2, left + side / 2, side, side]) / SIZE
    return images, boxes


def matched_loss(predicted, boxes):
    """Return the mean L1 distance between predicted boxes and their targets in the optimal matching."""
    order = linear_assignment(torch.cdist(predicted, boxes, p=1))
    return F.l1_loss(predicted, boxes.gather(1, order[..., None].expand_as(boxes)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    detector = Detector()
    plain = Detector(PlainCrossAttention)
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    for step in range(steps):
        images, boxes = draw(32, generator)
        loss = matched_loss(detector(images), boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, steps - 1):
            print(f"step {step + 1}: mean box error {SIZE * loss.item():.2f} pixels")
    plain.load_state_dict(detector.state_dict())
    with torch.no_grad():
        difference = (plain(images) - detector(images)).abs().max().item()
    print(f"largest difference from nn.MultiheadAttention with the same weights: {difference:.1e}")


if __name__ == "__main__":
    main()
