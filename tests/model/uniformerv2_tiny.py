"""A small UniFormerV2 for tests."""

from golden import golden_weights

from art import build_backbone

TINY = {"width": 24, "layers": 3, "heads": 3, "patch_size": 8, "input_size": 24, "global_blocks": [0, 2]}
SSV2 = {"local_mhra": 2, "temporal_downsample": True}


def make_tiny(**options):
    """Return a small backbone in which no parameter is zero."""
    backbone = build_backbone("uniformerv2_b16", num_frames=4, **{**TINY, **options})
    shapes = {name: value.shape for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(golden_weights(shapes, "tiny"))
    return backbone.eval()
