"""`RegionCrossAttention` in the BLIP-2 Q-Former of `transformers`: converted weights, equal outputs.

    pip install 'art-kernels[transformers]'
    python examples/qformer.py

The queries of the Q-Former attend to the tokens of an image encoder in every second layer. Its separate projections are
converted to those of `RegionCrossAttention`; residual and LayerNorm are kept. Load published weights into the original
model before the conversion.
"""

import copy

import torch
from torch import nn

from art.extras import import_extra
from art_kernels import RegionCrossAttention

import_extra("transformers", extra="transformers", needed_by="this example")
from transformers import Blip2QFormerConfig, Blip2QFormerModel  # noqa: E402


class RegionQFormerAttention(nn.Module):
    """Replaces a `Blip2QFormerAttention` that attends to an encoder."""

    def __init__(self, original):
        super().__init__()
        attention, output = original.attention, original.output
        self.attention = RegionCrossAttention(
            attention.all_head_size,
            attention.num_attention_heads,
            region_dim=attention.key.in_features,
            dropout=attention.attention_dropout,
        )
        projections = (attention.query, attention.key, attention.value)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        state = {name: layer.weight for name, layer in zip(names, projections, strict=True)}
        state["in_proj_bias"] = torch.cat([layer.bias for layer in projections])
        state |= {"out_proj.weight": output.dense.weight, "out_proj.bias": output.dense.bias}
        self.attention.load_state_dict(state)
        self.dropout, self.norm = output.dropout, output.LayerNorm

    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **_):
        mask = encoder_attention_mask  # [B,1,Q,N], equal for all queries: bool, or additive
        if mask is not None:
            mask = mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] == 0
        attended, _ = self.attention(hidden_states, encoder_hidden_states, region_mask=mask)
        return self.norm(self.dropout(attended) + hidden_states)


def with_region_attention(qformer):
    """Return a copy of the model that attends to the encoder with `RegionCrossAttention`."""
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
    original = Blip2QFormerModel(config).eval()
    converted = with_region_attention(original).eval()
    queries, image = torch.randn(2, 8, 64), torch.randn(2, 257, 96)
    mask = torch.ones(2, 257, dtype=torch.long)
    mask[1, 200:] = 0  # the second image has fewer tokens
    replaced = sum(isinstance(module, RegionQFormerAttention) for module in converted.modules())
    with torch.no_grad():
        for name, encoder_mask in (("all tokens", None), ("some masked", mask)):
            outputs = [
                model(
                    query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=encoder_mask
                ).last_hidden_state
                for model in (original, converted)
            ]
            print(f"{name}: largest difference {(outputs[0] - outputs[1]).abs().max().item():.1e}")
    print(f"layers replaced: {replaced} of {config.num_hidden_layers}")


if __name__ == "__main__":
    main()
