"""`RegionCrossAttention` as the attention pool of `timm`: converted weights, equal outputs, less time.

    pip install 'art-kernels[timm]'
    python examples/timm_attention_pool.py

`timm.layers.AttentionPoolLatent`, the last layer of SigLIP and other models, projects every token to a key and a value
for one query. The folded attention projects none. The default sizes are those of SigLIP B/16 at 224 pixels.
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
    """Replaces a timm pool, with its weights. Raises ValueError if the pool is not supported."""

    def __init__(self, original):
        super().__init__()
        if not isinstance(original.q, nn.Linear) or not isinstance(original.q_norm, nn.Identity):
            raise ValueError("the pool has no query projection, or normalizes queries and keys: not supported")
        width = original.kv.in_features
        if (
            not isinstance(original.proj, nn.Linear)
            or original.proj.out_features != width
            or original.q.in_features != width
        ):
            raise ValueError(f"the pool changes the number of channels, {width}: not supported")
        has_bias = original.q.bias is not None
        self.attention = RegionCrossAttention(width, original.num_heads)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([original.q.weight, original.kv.weight]))
            if has_bias:
                self.attention.in_proj_bias.copy_(torch.cat([original.q.bias, original.kv.bias]))
        self.attention.out_proj = original.proj
        self.latent, self.pos_embed, self.pool = original.latent, original.pos_embed, original.pool
        self.drop, self.norm, self.mlp = original.proj_drop, original.norm, original.mlp

    def forward(self, x):
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.drop(self.attention(self.latent.expand(len(x), -1, -1), x)[0])
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool == "token" else x.mean(1) if self.pool == "avg" else x


def step_seconds(pools, tokens, rounds):
    """Return the median seconds of a forward and backward pass of each pool, interleaved, after one warmup round."""
    seconds = [[] for _ in pools]
    for _ in range(rounds + 1):
        for pool, times in zip(pools, seconds, strict=True):
            start = time.perf_counter()
            pool(tokens.detach().requires_grad_()).square().mean().backward()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    original = timm_layers.AttentionPoolLatent(768, num_heads=12, mlp_ratio=4, norm_layer=nn.LayerNorm)
    folded = RegionPool(original)  # shares latent, MLP, and norm
    tokens = torch.randn(options.images, 196, 768)
    with torch.no_grad():
        print(f"largest difference {(original(tokens) - folded(tokens)).abs().max().item():.1e}")
    original_s, folded_s = step_seconds((original, folded), tokens, options.rounds)
    print(f"forward and backward: timm {1e3 * original_s:.1f} ms, RegionCrossAttention {1e3 * folded_s:.1f} ms")
    print(f"speedup: {original_s / folded_s:.2f}")


if __name__ == "__main__":
    main()
