"""`RegionCrossAttention`: equivalence to `nn.MultiheadAttention` on both routes, and the choice of route."""

import copy
import math
import pickle

import pytest
import torch
from operator_checks import assert_compiles_once
from torch import nn

from art_kernels import RegionCrossAttention
from art_kernels.region_attention.module import cheaper_route

ROUTES = ["folded", "projected"]
FRAMES, QUERIES, REGIONS, EMBED, HEADS = 3, 2, 9, 16, 4


def pair(region_dim=None, **options) -> tuple[RegionCrossAttention, nn.MultiheadAttention]:
    """Return both modules with the same random parameters, including the biases."""
    dropout, bias = options.get("dropout", 0.0), options.get("bias", True)
    ours = RegionCrossAttention(EMBED, HEADS, region_dim=region_dim, dtype=torch.float64, **options)
    theirs = nn.MultiheadAttention(
        EMBED, HEADS, dropout, bias, kdim=region_dim, vdim=region_dim, batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors(region_dim=None, **options):
    region_dim = region_dim or EMBED
    shapes = [(FRAMES, QUERIES, EMBED), (FRAMES, REGIONS, region_dim), (REGIONS, region_dim)]
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True, **options) for shape in shapes)


@pytest.mark.parametrize("region_dim", [None, EMBED, 24])
@pytest.mark.parametrize("bias", [True, False])
def test_initial_parameters_equal_those_of_multihead_attention(region_dim, bias):
    torch.manual_seed(5)
    ours = RegionCrossAttention(EMBED, HEADS, region_dim=region_dim, bias=bias).state_dict()
    torch.manual_seed(5)
    theirs = nn.MultiheadAttention(EMBED, HEADS, bias=bias, kdim=region_dim, vdim=region_dim).state_dict()
    assert list(ours) == list(theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("region_dim", [None, 24])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_output_map_and_gradients_equal_multihead_attention(route, region_dim, bias, masked):
    ours, theirs = pair(region_dim, bias=bias)
    queries, regions, _ = tensors(region_dim)
    mask = torch.rand(FRAMES, REGIONS) > 0.4 if masked else None
    if mask is not None:
        mask[:, 0] = True
    output, weights = ours(queries, regions, region_mask=mask, return_map=True, route=route)
    expected, expected_weights = theirs(
        queries, regions, regions, key_padding_mask=None if mask is None else ~mask, average_attn_weights=False
    )
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert weights.shape == (FRAMES, HEADS, QUERIES, REGIONS)
    without_map, nothing = ours(queries, regions, region_mask=mask, route=route)
    torch.testing.assert_close(without_map, expected)
    assert nothing is None

    direction, map_direction = torch.randn_like(expected), torch.randn_like(expected_weights)
    leaves = [queries, regions]
    found = torch.autograd.grad(
        (output, weights), [*leaves, *ours.parameters()], (direction, map_direction), retain_graph=True
    )
    wanted = torch.autograd.grad(
        (expected, expected_weights), [*leaves, *theirs.parameters()], (direction, map_direction)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("region_dim", [None, 24])
def test_key_bias_has_zero_gradient(region_dim):
    ours, _ = pair(region_dim)
    queries, regions, _ = tensors(region_dim)
    ours(queries, regions, route="folded")[0].square().sum().backward()
    gradients = ours.in_proj_bias.grad.chunk(3)
    assert (gradients[1] == 0).all() and (gradients[0] != 0).all() and (gradients[2] != 0).all()


@pytest.mark.parametrize("region_dim", [None, 24])
@pytest.mark.parametrize("norm_regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [False, True])
def test_routes_are_equivalent(region_dim, norm_regions, masked, position):
    ours, _ = pair(region_dim, norm_regions=norm_regions)
    queries, regions, key_position = tensors(region_dim)
    mask = torch.rand(FRAMES, REGIONS) > 0.4 if masked else None
    if mask is not None:
        mask[1] = False
    options = {"key_position": key_position if position else None, "region_mask": mask}
    leaves = [queries, regions, *ours.parameters(), *([key_position] if position else [])]
    results = []
    for route in ROUTES:
        for return_map in (True, False):
            output, weights = ours(queries, regions, return_map=return_map, route=route, **options)
            gradients = torch.autograd.grad(output.square().sum(), leaves)
            results.append(([output, *gradients], weights))
    for numbers, _ in results[1:]:
        torch.testing.assert_close(numbers, results[0][0])
    torch.testing.assert_close(results[2][1], results[0][1])


@pytest.mark.parametrize("route", ROUTES)
def test_position_and_layer_norm(route):
    ours, theirs = pair(norm_regions=True)
    queries, regions, key_position = tensors()
    values = nn.functional.layer_norm(regions, (EMBED,), eps=1e-5)
    expected, _ = theirs(queries, values + key_position, values)
    torch.testing.assert_close(ours(queries, regions, key_position=key_position, route=route)[0], expected)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("norm_regions", [False, True])
@pytest.mark.parametrize("training_dropout", [0.0, 0.5])
def test_masked_regions_may_contain_nan(route, norm_regions, training_dropout):
    ours, _ = pair(norm_regions=norm_regions, dropout=training_dropout)
    queries, regions, _ = tensors()
    mask = torch.rand(FRAMES, REGIONS) > 0.4
    mask[:, 0], mask[1] = True, False
    results = []
    for poison in (0.0, math.nan):
        leaf = regions.detach().masked_fill(~mask[:, :, None], poison).requires_grad_()
        torch.manual_seed(1)
        output, weights = ours(queries, leaf, region_mask=mask, return_map=True, route=route)
        torch.manual_seed(1)
        bare, _ = ours(queries, leaf, region_mask=mask, route=route)
        gradients = torch.autograd.grad(output.sum() + bare.sum(), [leaf, queries, *ours.parameters()])
        results.append([output, bare, weights, *gradients])
        assert (gradients[0][~mask] == 0).all() and (gradients[1][1] == 0).all()
        torch.testing.assert_close(output[1], ours.out_proj.bias.expand_as(output[1]))
        torch.testing.assert_close(bare[1], ours.out_proj.bias.expand_as(bare[1]))
        assert (weights[1] == 0).all()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("region_dim", [None, 24])
def test_dropout_equals_multihead_attention(route, region_dim):
    ours, theirs = pair(region_dim, dropout=0.4)
    queries, regions, _ = tensors(region_dim)
    torch.manual_seed(2)
    output, weights = ours(queries, regions, return_map=True, route=route)
    torch.manual_seed(2)
    expected, expected_weights = theirs(queries, regions, regions, average_attn_weights=False)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert (weights == 0).any() and not torch.allclose(weights.sum(-1), torch.ones(()).double())
    leaves = [queries, regions]
    found = torch.autograd.grad(output.square().sum(), [*leaves, *ours.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [*leaves, *theirs.parameters()]))
    assert not torch.equal(ours(queries, regions, route=route)[0], ours(queries, regions, route=route)[0])
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(queries, regions, route=route)[0], theirs(queries, regions, regions)[0])


def test_separate_projections_load_into_a_joint_weight():
    ours, _ = pair()
    state = ours.state_dict()
    joint = state.pop("in_proj_weight")
    state.update(zip(["q_proj_weight", "k_proj_weight", "v_proj_weight"], joint.chunk(3), strict=True))
    other = nn.ModuleDict({"attention": RegionCrossAttention(EMBED, HEADS, dtype=torch.float64)})
    other.load_state_dict({f"attention.{name}": value for name, value in state.items()})
    torch.testing.assert_close(other["attention"].state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert "q_proj_weight" in state, "the dict of the caller is unchanged"
    with pytest.raises(RuntimeError, match="in_proj_weight"):
        RegionCrossAttention(EMBED, HEADS, region_dim=24).load_state_dict(ours.state_dict())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("frames, queries, regions", [(0, 2, 9), (3, 0, 9), (3, 2, 0)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_empty_sizes(route, frames, queries, regions, dropout):
    module = RegionCrossAttention(EMBED, HEADS, dropout=dropout)
    nn.init.normal_(module.in_proj_bias), nn.init.normal_(module.out_proj.bias)
    output, weights = module(
        torch.randn(frames, queries, EMBED), torch.randn(frames, regions, EMBED), return_map=True, route=route
    )
    assert output.shape == (frames, queries, EMBED) and weights.shape == (frames, HEADS, queries, regions)
    output.sum().backward()
    assert module.in_proj_weight.grad.isfinite().all()
    if regions == 0:
        torch.testing.assert_close(output, module.out_proj.bias.expand_as(output))


def test_the_cheaper_route_is_taken(monkeypatch):
    taken = []
    for route in ROUTES:
        original = getattr(RegionCrossAttention, f"_{route}")

        def spy(self, *args, route=route, original=original):
            taken.append(route)
            return original(self, *args)

        monkeypatch.setattr(RegionCrossAttention, f"_{route}", spy)
    module = RegionCrossAttention(EMBED, HEADS)
    regions = torch.randn(1, 50, EMBED)
    module(torch.randn(1, 1, EMBED), regions)
    module(torch.randn(1, 50, EMBED), regions)
    module(torch.randn(1, 50, EMBED), regions, backend="torch")
    assert taken == ["folded", "projected", "folded"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_autocast(device, dtype, route):
    module = RegionCrossAttention(EMBED, HEADS, region_dim=24, norm_regions=True).to(device)
    queries, regions = torch.randn(3, 2, EMBED, device=device), torch.randn(3, 9, 24, device=device)
    expected, expected_weights = module(queries, regions, return_map=True)
    with torch.autocast(device.type, dtype):
        output, weights = module(queries, regions.to(dtype), return_map=True, route=route)
        bare, _ = module(queries.to(dtype), regions, route=route)
    assert output.dtype == bare.dtype == weights.dtype == dtype
    for found, wanted in ((output, expected), (bare, expected), (weights, expected_weights)):
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)
    output.float().sum().backward()
    assert module.q_proj_weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_compiles_once_for_every_batch_size(device, route):
    module = RegionCrossAttention(EMBED, HEADS, region_dim=24, norm_regions=True).to(device)
    position = torch.randn(9, 24, device=device)

    def call(queries, regions, mask):
        return module(queries, regions, key_position=position, region_mask=mask, return_map=True, route=route)

    def make_inputs(frames):
        shapes = (frames, 2, EMBED), (frames, 9, 24)
        tensors = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
        return [*tensors, torch.rand(frames, 9, device=device) > 0.4]

    assert_compiles_once(call, make_inputs)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch_size(strict):
    module = RegionCrossAttention(EMBED, HEADS).eval()
    frames = torch.export.Dim("frames")
    example, other = ((torch.randn(n, 2, EMBED), torch.randn(n, 9, EMBED)) for n in (3, 5))
    program = torch.export.export(module, example, dynamic_shapes=({0: frames}, {0: frames}), strict=strict)
    torch.testing.assert_close(program.module()(*other), module(*other))


def test_copy_pickle_and_repr():
    module = RegionCrossAttention(EMBED, HEADS, region_dim=24, bias=False, dropout=0.1, norm_regions=True)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert "embed_dim=16, num_heads=4, region_dim=24, bias=False, dropout=0.1, norm_regions=True" in repr(module)
    assert RegionCrossAttention(EMBED, HEADS, device="meta").out_proj.weight.is_meta


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"embed_dim": 16.0}, TypeError, "embed_dim is 16.0 of type float, expected an int"),
        ({"embed_dim": 0}, ValueError, "embed_dim is 0, expected at least 1"),
        ({"num_heads": True}, TypeError, "num_heads is True of type bool, expected an int"),
        ({"num_heads": 3}, ValueError, "embed_dim is 16 and num_heads is 3, expected a multiple"),
        ({"region_dim": -1}, ValueError, "region_dim is -1, expected at least 1"),
        ({"bias": 1}, TypeError, "bias is 1 of type int, expected True or False"),
        ({"dropout": 1.5}, ValueError, r"dropout is 1.5, expected a finite number in \[0.0, 1.0\]"),
        ({"dropout": None}, TypeError, "dropout is None, expected a number"),
        ({"norm_regions": "yes"}, TypeError, "norm_regions is 'yes' of type str"),
    ],
)
def test_errors_of_the_constructor(arguments, error, message):
    with pytest.raises(error, match="RegionCrossAttention: " + message):
        RegionCrossAttention(**{"embed_dim": EMBED, "num_heads": HEADS, **arguments})


QUERIES_INPUT, REGIONS_INPUT = torch.randn(FRAMES, QUERIES, EMBED), torch.randn(FRAMES, REGIONS, 24)
POSITION, MASK = torch.randn(REGIONS, 24), torch.ones(FRAMES, REGIONS, dtype=torch.bool)
CALL_ERRORS = [
    ({"queries": QUERIES_INPUT[0]}, ValueError, r"queries has shape \[2, 16\]"),
    ({"queries": QUERIES_INPUT[..., :8]}, ValueError, r"queries has shape .* = \[3, 2, 16\]"),
    ({"queries": QUERIES_INPUT[:2]}, ValueError, r"queries has shape \[2, 2, 16\]"),
    ({"queries": None}, TypeError, r"queries is None"),
    ({"queries": QUERIES_INPUT.bfloat16()}, TypeError, r"queries has dtype .* the dtype of the module; convert"),
    ({"queries": QUERIES_INPUT.to("meta")}, ValueError, r"queries is on meta, expected cpu, the device of the mod"),
    ({"regions": QUERIES_INPUT}, ValueError, r"regions has shape \[3, 2, 16\], expected .* \[3, 2, 24\]"),
    ({"regions": REGIONS_INPUT.double()}, TypeError, r"regions has dtype torch.float64"),
    ({"regions": REGIONS_INPUT.int()}, TypeError, r"regions has dtype torch.int32"),
    ({"key_position": POSITION[1:]}, ValueError, r"key_position has shape \[8, 24\]"),
    ({"key_position": POSITION.half()}, TypeError, r"key_position has dtype torch.float16"),
    ({"region_mask": MASK[:, 1:]}, ValueError, r"region_mask has shape \[3, 8\]"),
    ({"region_mask": MASK.int()}, TypeError, r"region_mask has dtype torch.int32, expected torch.bool"),
    ({"return_map": None}, TypeError, r"return_map is None, expected True or False"),
    ({"route": "fast"}, ValueError, r"route is 'fast', expected one of 'folded', 'projected'"),
    ({"route": "projected", "backend": "torch"}, ValueError, r"backend is 'torch' with route='projected'"),
]


@pytest.mark.parametrize("changed, error, message", CALL_ERRORS, ids=[message for *_, message in CALL_ERRORS])
def test_errors_of_the_call(changed, error, message):
    arguments = {"queries": QUERIES_INPUT, "regions": REGIONS_INPUT, **changed}
    with pytest.raises(error, match="RegionCrossAttention: .*" + message):
        RegionCrossAttention(EMBED, HEADS, region_dim=24)(**arguments)


def test_unsupported_backend_raises():
    module = RegionCrossAttention(EMBED, HEADS).double()
    tensor = torch.randn(1, 2, EMBED).double()
    with pytest.raises(ValueError, match="region_attention: backend='triton' does not support"):
        module(tensor, tensor, backend="triton")


def test_cheaper_route_against_operations_counted_by_hand():
    # K = 1, H = 2, N = 3, C = 4: folded 2·1·4·(E + 6), projected 2·3·E·(4 + 1); equal at E = 48 / 22.
    sizes = {"queries": 1, "regions": 3, "region_dim": 4, "num_heads": 2}
    assert cheaper_route(embed_dim=2, **sizes) == "projected"  # 64 vs. 60
    assert cheaper_route(embed_dim=4, **sizes) == "folded"  # 80 vs. 120
    # Few queries are folded, and many are projected.
    sizes = {"regions": 196, "region_dim": 256, "embed_dim": 256, "num_heads": 8}
    routes = [cheaper_route(queries=count, **sizes) for count in (1, 2, 16, 30, 31, 196)]
    assert routes == ["folded"] * 4 + ["projected"] * 2
    # One query over many tokens, as in a global block of a video transformer.
    assert cheaper_route(queries=1, regions=1568, region_dim=768, embed_dim=768, num_heads=12) == "folded"
