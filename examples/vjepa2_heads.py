"""Frozen V-JEPA 2 features and heads on them: which tensor, its shape, equal logits, and a run to predict with.

    pip install 'art-kernels[transformers]'
    python examples/vjepa2_heads.py

Without an argument, a small model with random weights is used, which shows shapes and equality but no accuracy. With
published weights (any directory or Hub name of VJEPA2ForVideoClassification), on a machine with memory for them:

    python examples/vjepa2_heads.py --pretrained facebook/vjepa2-vitl-fpc16-256-ssv2
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from art import Features, build_backbone, load_model
from art.extras import import_extra
from art.heads import FeatureShape, ProbeClassifier, build_head
from art_kernels import region_attention

transformers = import_extra("transformers", extra="transformers", needed_by="this example")

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "mlp_ratio": 2.0}
TINY_PROBE = {
    "crop_size": 64, "frames_per_clip": 8, "num_pooler_layers": 1, "num_labels": 3, "pred_hidden_size": 24,
    "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip


def save_tiny(directory):
    """Save a small model with random weights in the format of the published ones."""
    torch.manual_seed(0)
    published = transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**TINY, **TINY_PROBE))
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.1)
    published.save_pretrained(directory)


def published_ep(tokens, queries, projection):
    """Efficient probing as published: project every token, then pool with each query its part of the channels."""
    weights = (tokens @ queries.mT / tokens.shape[-1] ** 0.5).softmax(1)  # [B, T'N, Q]
    parts = (tokens @ projection.mT).unflatten(-1, (len(queries), -1))  # [B, T'N, Q, C / Q]
    return torch.einsum("bnq,bnqd->bqd", weights, parts).flatten(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", help="directory or Hub name; default: a small model with random weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if options.pretrained is None:
            save_tiny(directory)
        show(options.pretrained or directory, Path(directory) / "run")


@torch.no_grad()
def show(pretrained, run):
    published = transformers.VJEPA2ForVideoClassification.from_pretrained(pretrained).eval()
    config, is_tiny = published.config, published.config.hidden_size == TINY["hidden_size"]
    architecture = {name: getattr(config, name) for name in TINY}
    names = [config.id2label[label] for label in range(config.num_labels)]
    num_frames, size = (8, 64) if is_tiny else (16, config.crop_size)

    # 1. Which tensor: the last hidden state of the encoder, without the predictor.
    backbone = build_backbone(
        "vjepa2", num_frames=num_frames, pretrained=pretrained, input_size=size, **architecture
    ).eval()
    video = torch.rand(2, num_frames, 3, size, size)  # [B, T, 3, H, W], in 0..1; the backbone normalizes colors
    named = backbone.named_features(video)
    print("stored:", {name: list(tensor.shape) for name, tensor in named.items()})
    print(f"frames of a tubelet: {backbone.tubelet}, grid: {backbone.grid}, prefix tokens: {'prefix' in named}")
    features = Features(named["tokens"], named["class_token"], backbone.grid)

    # 2. The published probe as head "attentive".
    shape = FeatureShape(num_frames // backbone.tubelet, backbone.grid, backbone.channels)
    probe_options = {"depth": config.num_pooler_layers + 1, "num_heads": config.num_attention_heads}
    attentive = build_head("attentive", shape, names, **probe_options).eval()
    attentive.load_vjepa2(published.state_dict(), source=pretrained)
    expected = published(backbone.normalize(video)).logits
    difference = (attentive(features).logits - expected).abs().max().item()
    print(f"attentive and VJEPA2ForVideoClassification: largest difference {difference:.1e}")

    # 3. Efficient probing folds: pooling first, with region_attention, projects one vector per query, not every token.
    ep = build_head("ep", shape, names, num_queries=8).eval()
    pooled = ep.project(region_attention(ep.queries.expand(2, -1, -1), ep.tokens(features)))
    reference = published_ep(ep.tokens(features), ep.queries, ep.value.weight)
    print(f"folded and published efficient probing: largest difference {(pooled - reference).abs().max().item():.1e}")

    # 4. Backbone and head as one run directory, for predict, explain, evaluate, serve and export.
    model = ProbeClassifier(
        names, "vjepa2", num_frames, head="attentive", head_options=probe_options,
        pretrained=pretrained, backbone_options={**architecture, "input_size": size},
    )  # fmt: skip
    model.head.load_state_dict(attentive.state_dict())
    model.save_pretrained(run)
    loaded = load_model(run)
    best = loaded(video).logits[0].softmax(0).max(0)
    print(f"loaded: {type(loaded).__name__}, predicts {names[best.indices]!r} with {best.values:.3f}")
    print(f"after loading: largest difference {(loaded(video).logits - expected).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
