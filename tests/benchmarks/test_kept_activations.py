import pytest
import torch

from art import ARTModel
from benchmarks.kept_activations import kept_mib

SMALL = {"width": 24, "layers": 3, "heads": 2, "patch_size": 8, "input_size": 24}


def kept(**options):
    torch.manual_seed(0)
    names = ["run", "jump"]
    sizes = {"latent_dim": 16, "num_heads": 2, "feedforward_dim": 32, "activation_layers": 1, "num_frames": 2}
    given = {"backbone_options": {**SMALL, **options.pop("backbone_options", {})}, "enhancement_layers": 1, **options}
    model = ARTModel(names, backbone="uniformerv2_b16", semantics=torch.randn(2, 2, 8), **sizes, **given)
    return kept_mib(model.train())


def test_less_is_kept_where_blocks_are_computed_again_or_layers_are_left_out():
    whole = kept()
    assert kept() == pytest.approx(whole)
    assert kept(backbone_options={"gradient_checkpointing": True}) < 0.7 * whole
    # One layer keeps at least its input and its hidden layer: 2 frames of 9 regions and 2 semantics, in two bytes.
    assert whole - kept(enhancement_layers=0) > 2 * 11 * (16 + 32) * 2 / 2**20
