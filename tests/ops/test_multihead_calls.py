"""`RegionCrossAttention` instead of `nn.MultiheadAttention`: calls, replaced projections, quantization and export."""

import io
import math

import pytest
import torch
from torch import nn

from art_kernels import RegionCrossAttention, region_attention
from art_kernels._core import backends

FRAMES, QUERIES, REGIONS, EMBED, HEADS = 3, 4, 9, 8, 2
ROUTES = ["folded", "projected"]


def pair(region_dim=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(
        EMBED, HEADS, kdim=region_dim, vdim=region_dim, batch_first=True, dtype=dtype, **options
    )
    ours = RegionCrossAttention(EMBED, HEADS, region_dim=region_dim, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def tensors(region_dim=EMBED, dtype=torch.float64, **options):
    torch.manual_seed(1)
    queries, values = torch.randn(FRAMES, QUERIES, EMBED), torch.randn(FRAMES, REGIONS, region_dim)
    return queries.to(dtype), values.to(dtype)


def random_mask(*shape, additive=False):
    """Return a mask in which the first region is never excluded."""
    mask = torch.rand(*shape) > 0.5
    mask[..., 0] = False
    return torch.randn(*shape).double().masked_fill(mask, -math.inf) if additive else mask


def assert_calls_equal(ours, theirs, query, key, value, **options):
    """Compare outputs, weights, and the gradients of inputs, parameters and additive masks."""
    results = []
    for module in (theirs, ours):
        same = key is value
        q, v = query.clone().requires_grad_(), value.clone().requires_grad_()
        k = v if same else key.clone().requires_grad_()
        leaves = [q, v, *([] if same else [k])]
        arguments = {}
        for name, option in options.items():
            if isinstance(option, torch.Tensor) and option.is_floating_point():
                option = option.clone().requires_grad_()
                leaves.append(option)
            arguments[name] = option
        if module is theirs:
            arguments.pop("route", None)
        output, weights = module(q, k, v, **arguments)
        loss = output.square().sum() + (0 if weights is None else weights.cos().sum())
        results.append((output, weights, *torch.autograd.grad(loss, [*leaves, *module.parameters()])))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)


MASK_SHAPES = {
    "none": {},
    "padding": {"key_padding_mask": (FRAMES, REGIONS)},
    "shared": {"attn_mask": (QUERIES, REGIONS)},
    "each-head": {"attn_mask": (FRAMES * HEADS, QUERIES, REGIONS)},
    "both": {"key_padding_mask": (FRAMES, REGIONS), "attn_mask": (QUERIES, REGIONS)},
    "both-each-head": {"key_padding_mask": (FRAMES, REGIONS), "attn_mask": (FRAMES * HEADS, QUERIES, REGIONS)},
}


@pytest.mark.parametrize("route", [None, *ROUTES])
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "float"])
@pytest.mark.parametrize("shapes", MASK_SHAPES.values(), ids=MASK_SHAPES)
def test_masks(shapes, additive, route):
    ours, theirs = pair(6)
    query, value = tensors(6)
    masks = {name: random_mask(*shape, additive=additive) for name, shape in shapes.items()}
    for options in ({"need_weights": False}, {"average_attn_weights": False}, {}):
        assert_calls_equal(ours, theirs, query, value, value, route=route, **masks, **options)


@pytest.mark.parametrize("route", [None, *ROUTES])
@pytest.mark.parametrize("shape", [(REGIONS, EMBED), (1, REGIONS, EMBED), (FRAMES, REGIONS, EMBED)], ids=str)
def test_keys_with_positions(shape, route):
    ours, theirs = pair()
    query, value = tensors()
    key = value + torch.randn(shape, dtype=torch.float64)
    for options in ({"need_weights": False}, {"key_padding_mask": random_mask(FRAMES, REGIONS)}):
        assert_calls_equal(ours, theirs, query, key, value, route=route, **options)


@pytest.mark.parametrize("key_padding_mask", [None, (REGIONS,)])
@pytest.mark.parametrize("attn_mask", [None, (QUERIES, REGIONS), (HEADS, QUERIES, REGIONS)])
@pytest.mark.parametrize("average", [False, True])
def test_without_a_batch_dimension(key_padding_mask, attn_mask, average):
    ours, theirs = pair()
    query, value = (tensor[0] for tensor in tensors())
    masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
    masks = {name: shape if shape is None else random_mask(*shape) for name, shape in masks.items()}
    assert_calls_equal(ours, theirs, query, value, value, average_attn_weights=average, **masks)
    key = value + 1
    assert_calls_equal(ours, theirs, query, key, value, **masks)


@pytest.mark.parametrize("route", ROUTES)
def test_dropout(route):
    ours, theirs = pair(dropout=0.4)
    query, value = tensors()
    results = []
    for module, options in ((ours, {"route": route}), (theirs, {})):
        torch.manual_seed(2)
        results.append(module(query, value, value, attn_mask=torch.zeros(QUERIES, REGIONS).bool(), **options))
    torch.testing.assert_close(*results)
    assert (results[0][1] == 0).any()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "float"])
def test_a_query_that_may_not_attend_anything_has_zero_attention(route, need_weights, additive):
    """`nn.MultiheadAttention` returns NaN or zero, depending on need_weights."""
    ours, _ = pair()
    query, value = (tensor.requires_grad_() for tensor in tensors())
    mask = random_mask(FRAMES * HEADS, QUERIES, REGIONS)
    mask.view(FRAMES, HEADS, QUERIES, REGIONS)[1, :, 2] = True
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(mask, -math.inf)
    output, weights = ours(query, value, value, attn_mask=mask, need_weights=need_weights, route=route)
    torch.testing.assert_close(output[1, 2], ours.out_proj.bias)
    assert weights is None or not weights[1, 2].any()
    gradients = torch.autograd.grad(output.square().sum(), [query, value])
    assert all(gradient.isfinite().all() for gradient in gradients) and not gradients[0][1, 2].any()


@pytest.mark.parametrize("key_is_value", [True, False])
@pytest.mark.parametrize("route", ROUTES)
def test_padding_may_contain_nan(route, key_is_value):
    ours, _ = pair()
    query, value = tensors()
    padding = random_mask(FRAMES, REGIONS)
    results = []
    for poison in (0.0, math.nan):
        values = value.masked_fill(padding[..., None], poison).requires_grad_()
        keys = values if key_is_value else values * 2
        output, _ = ours(query, keys, values, key_padding_mask=padding, need_weights=False, route=route)
        results.append([output, *torch.autograd.grad(output.square().sum(), [values, *ours.parameters()])])
        assert results[-1][1].isfinite().logical_or(~padding[..., None]).all()
    torch.testing.assert_close(*results, equal_nan=not key_is_value)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "shape", [(FRAMES, QUERIES, REGIONS), (FRAMES, HEADS, QUERIES, REGIONS)], ids=["query", "head"]
)
def test_masks_and_biases_of_the_call_with_regions(route, shape):
    ours, theirs = pair()
    query, value = tensors()
    mask, bias = random_mask(*shape), torch.randn(FRAMES, HEADS, QUERIES, REGIONS, dtype=torch.float64)
    position = torch.randn(FRAMES, REGIONS, EMBED, dtype=torch.float64)
    full = mask if mask.dim() == 4 else mask[:, None]
    expected = theirs(
        query, value + position, value, attn_mask=bias.masked_fill(full, -math.inf).flatten(0, 1),
        average_attn_weights=False,
    )  # fmt: skip
    found = ours(query, value, key_position=position, region_mask=~mask, attn_bias=bias, return_map=True, route=route)
    torch.testing.assert_close(found, expected)
    bare, _ = ours(query, value, key_position=position, region_mask=~mask, attn_bias=bias, route=route)
    torch.testing.assert_close(bare, expected[0])


@pytest.mark.parametrize("route", ROUTES)
def test_a_wide_bias_under_float16_autocast(route):
    module = RegionCrossAttention(EMBED, HEADS)
    query, value = tensors(dtype=torch.float32)
    bias = torch.full((FRAMES, REGIONS), -1e9)
    with torch.autocast("cpu", dtype=torch.float16):
        output, _ = module(query, value, value, key_padding_mask=bias, need_weights=False, route=route)
    # The bias absorbs the scores, so that every region has the same weight; rounded to -inf, all would be masked.
    expected, _ = module(torch.zeros_like(query), value)
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("layer_type", [nn.TransformerDecoderLayer, nn.TransformerEncoderLayer])
@pytest.mark.parametrize("training", [False, True])
def test_inside_a_transformer_layer(layer_type, training):
    torch.manual_seed(0)
    layer = layer_type(EMBED, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64).train(training)
    target, memory = tensors()
    if layer_type is nn.TransformerDecoderLayer:
        arguments = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)}
        arguments |= {"memory": memory, "tgt_is_causal": True, "memory_key_padding_mask": random_mask(FRAMES, REGIONS)}
        names = ["self_attn", "multihead_attn"]
    else:
        arguments, names = {"src_key_padding_mask": random_mask(FRAMES, QUERIES)}, ["self_attn"]
    with torch.no_grad():
        expected = layer(target, **arguments)
    for name in names:
        ours = RegionCrossAttention(EMBED, HEADS, dtype=torch.float64)
        ours.load_state_dict(getattr(layer, name).state_dict())
        setattr(layer, name, ours)
    with torch.no_grad():
        torch.testing.assert_close(layer(target, **arguments), expected)


Q, X = torch.randn(FRAMES, QUERIES, EMBED), torch.randn(FRAMES, REGIONS, EMBED)
PADDING = torch.zeros(FRAMES, REGIONS, dtype=torch.bool)
CALL_ERRORS = [
    ((Q, X), {"key_padding_mask": PADDING}, TypeError, "value is None, expected query, key and value"),
    ((Q, X), {"need_weights": True}, TypeError, "value is None, expected query, key and value"),
    ((), {"query": Q, "value": X}, TypeError, "key is None, expected query, key and value"),
    ((Q, X, X), {"query": Q}, TypeError, "query or key is passed twice"),
    ((Q, X, X), {"region_mask": ~PADDING}, TypeError, "region_mask is passed with query, key and value"),
    ((Q, X, X), {"return_map": True}, TypeError, "return_map is passed with query, key and value"),
    ((Q, X, X), {"need_weights": 1}, TypeError, "need_weights is 1 of type int"),
    ((Q, X, X), {"is_causal": True}, ValueError, "is_causal is True without attn_mask"),
    ((Q, X[..., :5], X), {}, ValueError, r"key has shape \[3, 9, 5\] and value \[3, 9, 8\], expected the same tokens"),
    ((Q, X[:, 1:], X), {}, ValueError, "expected the same tokens"),
    ((Q, X.double(), X), {}, TypeError, "key has dtype torch.float64, expected torch.float32"),
    ((Q, X[..., :5], X[..., :5]), {}, ValueError, "key has 5 channels, expected 8"),
    ((Q.mT, X, X), {}, ValueError, "query has 4 channels, expected 8"),
    ((Q.transpose(0, 1), *[X.transpose(0, 1)] * 2), {}, ValueError, r"batch_first=True; transpose\(0, 1\)"),
    ((Q[0], X, X), {}, ValueError, r"key has shape \[3, 9, 8\], expected the 2 dimensions \[N,C\]"),
    ((Q.double(), X, X), {}, TypeError, "query has dtype torch.float64, expected torch.float32"),
    ((Q, X, X), {"key_padding_mask": PADDING.byte()}, TypeError, "key_padding_mask has dtype torch.uint8, expected"),
    ((Q, X, X), {"key_padding_mask": [True]}, TypeError, "key_padding_mask is of type list"),
    ((Q, X, X), {"key_padding_mask": PADDING[:, 1:]}, ValueError, r"key_padding_mask has shape \[3, 8\]"),
    ((Q, X, X), {"key_padding_mask": PADDING.to("meta")}, ValueError, "key_padding_mask is on meta"),
    ((Q, X, X), {"attn_mask": PADDING}, ValueError, r"attn_mask has shape \[3, 9\], expected \[K,N\] = \[4, 9\]"),
    ((Q, X, X), {"attn_mask": Q.bool()}, ValueError, r"attn_mask has .* expected \[F\*H,K,N\] = \[6, 4, 9\]"),
    ((Q, X, X), {"route": "projected", "backend": "torch"}, ValueError, "backend is 'torch' with route='projected'"),
]


@pytest.mark.parametrize("arguments, options, error, message", CALL_ERRORS, ids=[case[-1] for case in CALL_ERRORS])
def test_errors_of_the_call(arguments, options, error, message):
    with pytest.raises(error, match="RegionCrossAttention: .*" + message):
        RegionCrossAttention(EMBED, HEADS)(*arguments, **options)


def test_separate_keys_with_norm_regions_raise():
    with pytest.raises(ValueError, match="key is not value, expected one tensor for both with norm_regions=True"):
        RegionCrossAttention(EMBED, HEADS, norm_regions=True)(Q, X + 1, X)


class LowRank(nn.Module):
    """An adapter around a linear layer; it has no attribute "weight"."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(EMBED, 2), nn.Linear(2, EMBED)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "replace", [LowRank, lambda base: nn.Identity(), lambda base: nn.Sequential(base, nn.GELU())], ids=range(3)
)
def test_a_replaced_output_projection_receives_the_attention(replace, route):
    module = RegionCrossAttention(EMBED, HEADS)
    original, module.out_proj = module.out_proj, nn.Identity()
    attended, _ = module(Q, X, route=route)
    module.out_proj = replace(original)
    torch.testing.assert_close(module(Q, X, X, need_weights=False, route=route)[0], module.out_proj(attended))
    module.reset_parameters()


def test_dynamic_quantization():
    module = nn.Sequential(RegionCrossAttention(EMBED, HEADS)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized[0].out_proj, nn.Linear)
    torch.testing.assert_close(quantized[0](Q, X)[0], module[0](Q, X)[0], atol=0.02, rtol=0.05)


class Attend(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.options = RegionCrossAttention(EMBED, HEADS).eval(), options

    def forward(self, query, value):
        return self.attention(query, value, value, need_weights=False, **self.options)[0]


@pytest.mark.slow
@pytest.mark.parametrize("queries, strict", [(2, False), (6, False), (2, True)])
def test_export_serves_every_number_of_regions(queries, strict):
    """Without a route, 2 queries are folded and 6 projected at 9 regions; the program may not be limited to that."""
    module, frames, regions = Attend(), torch.export.Dim("frames"), torch.export.Dim("regions")
    example = torch.randn(2, queries, EMBED), torch.randn(2, REGIONS, EMBED)
    program = torch.export.export(
        module, example, dynamic_shapes=({0: frames}, {0: frames, 1: regions}), strict=strict
    ).module()
    for count in (2, 300):
        other = torch.randn(3, queries, EMBED), torch.randn(3, count, EMBED)
        torch.testing.assert_close(program(*other), module(*other))


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_serves_other_sizes():
    module = Attend(route="folded")
    traced = torch.jit.trace(module, (Q, X), check_trace=False)
    other = torch.randn(2, QUERIES, EMBED), torch.randn(2, 17, EMBED)
    torch.testing.assert_close(traced(*other), module(*other))


@pytest.mark.slow
def test_onnx_export_uses_the_reference():
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = Attend(route="folded").eval()
    buffer = io.BytesIO()
    torch.onnx.export(module, (Q, X), dynamo=True, verbose=False).save(buffer)
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (Q.numpy(), X.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), module(Q, X))


def test_a_named_backend_cannot_be_exported_to_onnx(monkeypatch):
    monkeypatch.setattr(backends, "_in_onnx_export", lambda: True)
    with pytest.raises(ValueError, match="backend='torch' cannot be exported to ONNX, expected backend='reference'"):
        torch.export.export(Attend(backend="torch"), (Q, X))


LAYOUTS = {
    "nested": (lambda: torch.nested.nested_tensor(list(X)), "regions is nested"),
    "jagged": (lambda: torch.nested.nested_tensor(list(X), layout=torch.jagged), "regions is nested"),
    "sparse": (lambda: X.to_sparse(), "regions is sparse"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make, message", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("call", [region_attention, RegionCrossAttention(EMBED, HEADS)], ids=["function", "module"])
def test_other_layouts_raise(make, message, call):
    with pytest.raises(ValueError, match=message):
        call(Q, make())


def test_distributed_tensors_raise():
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        queries, regions, mask = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (Q, X, PADDING))
        for arguments, name in (
            ((queries, regions), "queries"),
            ((Q, regions), "regions"),
            ((Q, X, mask), "region_mask"),
        ):
            with pytest.raises(ValueError, match=rf"{name} is a DTensor, .* pass {name}.to_local\(\)"):
                region_attention(*arguments[:2], region_mask=arguments[2] if len(arguments) > 2 else None)
    finally:
        torch.distributed.destroy_process_group()
