"""`RegionCrossAttention` in the Q-Former of BLIP-2, as `transformers` has it: weights carried over, the same outputs.

    pip install 'art-kernels[transformers]'
    python examples/qformer.py

The Q-Former's queries read the tokens of an image encoder in every second layer. Its separate projections become those
of our module; residual and LayerNorm stay the library's. Published weights load into the library's model first.
"""

import copy

import torch
from torch import nn

from art.extras import import_extra
from art_kernels import RegionCrossAttention

import_extra("transformers", extra="transformers", needed_by="this example")
from transformers import Blip2QFormerConfig, Blip2QFormerModel  # noqa: E402


class RegionQFormerAttention(nn.Module):
    """In place of a `Blip2QFormerAttention` that reads an encoder."""

    def __init__(self, theirs):
        super().__init__()
        attention, output = theirs.attention, theirs.output
        self.attention = RegionCrossAttention(
            attention.all_head_size,
            attention.num_attention_heads,
            region_dim=attention.key.in_features,
            dropout=attention.attention_dropout,
        )
        parts = (attention.query, attention.key, attention.value)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        state = {name: part.weight for name, part in zip(names, parts, strict=True)}
        state["in_proj_bias"] = torch.cat([part.bias for part in parts])
        state |= {"out_proj.weight": output.dense.weight, "out_proj.bias": output.dense.bias}
        self.attention.load_state_dict(state)
        self.dropout, self.norm = output.dropout, output.LayerNorm

    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **_):
        mask = encoder_attention_mask  # [B,1,Q,N], the same for all queries: bool, or numbers to be added to the scores
        if mask is not None:
            mask = mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] == 0
        answers, _ = self.attention(hidden_states, encoder_hidden_states, region_mask=mask)
        return self.norm(self.dropout(answers) + hidden_states)


def with_region_attention(qformer):
    """A copy of the model with our attention wherever it reads the encoder."""
    qformer = copy.deepcopy(qformer)
    for layer in qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention = RegionQFormerAttention(layer.crossattention)
    return qformer


def main():
    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, encoder_hidden_size=96
    )
    theirs = Blip2QFormerModel(config).eval()
    ours = with_region_attention(theirs).eval()
    queries, image = torch.randn(2, 8, 64), torch.randn(2, 257, 96)
    seen = torch.ones(2, 257, dtype=torch.long)
    seen[1, 200:] = 0  # the second image has fewer tokens
    replaced = sum(isinstance(module, RegionQFormerAttention) for module in ours.modules())
    with torch.no_grad():
        for name, mask in (("all tokens", None), ("some masked", seen)):
            outputs = [
                model(query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=mask).last_hidden_state
                for model in (theirs, ours)
            ]
            print(f"{name}: largest difference {(outputs[0] - outputs[1]).abs().max().item():.1e}")
    print(f"layers replaced: {replaced} of {config.num_hidden_layers}")


if __name__ == "__main__":
    main()
