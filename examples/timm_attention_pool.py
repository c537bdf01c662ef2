"""`RegionCrossAttention` as the attention pool of `timm`: weights carried over, the same outputs, faster.

    pip install 'art-kernels[timm]'
    python examples/timm_attention_pool.py

`timm.layers.AttentionPoolLatent`, which SigLIP and others end in, projects every token to a key and a value for one
query. The folded attention projects none. Default sizes: SigLIP B/16 at 224 pixels.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from art.extras import import_extra
from art_kernels import RegionCrossAttention

timm_layers = import_extra("timm.layers", extra="timm", needed_by="this example")


class RegionPool(nn.Module):
    """In place of a timm pool, with its weights; raises ValueError for one that it cannot be."""

    def __init__(self, theirs):
        super().__init__()
        if not isinstance(theirs.q, nn.Linear) or not isinstance(theirs.q_norm, nn.Identity):
            raise ValueError("the pool has no query projection, or normalises queries and keys; keep timm's")
        width = theirs.kv.in_features
        if not isinstance(theirs.proj, nn.Linear) or theirs.proj.out_features != width or theirs.q.in_features != width:
            raise ValueError(f"the pool changes the number of channels, {width}; keep timm's")
        has_bias = theirs.q.bias is not None
        self.attention = RegionCrossAttention(width, theirs.num_heads)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([theirs.q.weight, theirs.kv.weight]))
            if has_bias:
                self.attention.in_proj_bias.copy_(torch.cat([theirs.q.bias, theirs.kv.bias]))
        self.attention.out_proj = theirs.proj
        self.latent, self.pos_embed, self.pool = theirs.latent, theirs.pos_embed, theirs.pool
        self.drop, self.norm, self.mlp = theirs.proj_drop, theirs.norm, theirs.mlp

    def forward(self, x):
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.drop(self.attention(self.latent.expand(len(x), -1, -1), x)[0])
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool == "token" else x.mean(1) if self.pool == "avg" else x


def step_seconds(pools, tokens, rounds):
    """Seconds of a forward and backward pass of each pool, in turns; the first round does not count."""
    seconds = [[] for _ in pools]
    for _ in range(rounds + 1):
        for pool, found in zip(pools, seconds, strict=True):
            start = time.perf_counter()
            pool(tokens.detach().requires_grad_()).square().mean().backward()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    theirs = timm_layers.AttentionPoolLatent(768, num_heads=12, mlp_ratio=4, norm_layer=nn.LayerNorm)
    ours = RegionPool(theirs)  # shares latent, MLP and norm with it
    tokens = torch.randn(options.images, 196, 768)
    with torch.no_grad():
        print(f"largest difference {(theirs(tokens) - ours(tokens)).abs().max().item():.1e}")
    theirs_s, ours_s = step_seconds((theirs, ours), tokens, options.rounds)
    print(f"forward and backward: timm {1e3 * theirs_s:.1f} ms, ours {1e3 * ours_s:.1f} ms")
    print(f"times as fast: {theirs_s / ours_s:.2f}")


if __name__ == "__main__":
    main()
