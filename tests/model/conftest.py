import pytest
import torch

from art import ARTModel, BackboneClassifier

CLASS_NAMES = ["walk", "run with the left arm raised", "jump", "cartwheel to the right"]
SMALL = {
    "backbone_options": {"width": 8, "depth": [1, 1, 1]},
    "num_frames": 3,
    "latent_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 32,
    "enhancement_layers": 1,
    "activation_layers": 2,
    "dropout": 0.0,
}


@pytest.fixture
def make_art():
    def make(**options):
        torch.manual_seed(0)
        return ARTModel(CLASS_NAMES, **{**SMALL, **options})

    return make


@pytest.fixture
def make_baseline():
    def make(**options):
        torch.manual_seed(0)
        return BackboneClassifier(CLASS_NAMES, **{**SMALL, **options})

    return make


@pytest.fixture
def video():
    return torch.rand(2, 3, 3, 48, 64, generator=torch.Generator().manual_seed(1))
