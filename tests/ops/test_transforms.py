"""Derivatives by `torch.func` and forward-mode differentiation: those of the reference, or an error that names it."""

import pytest
import torch
import torch.distributed as dist
from operator_checks import skip_unsupported
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from art_kernels import (
    RegionCrossAttention,
    gather_tracklets,
    linear_assignment,
    link_tracklets,
    mtc_loss,
    pool_tracklets,
    region_attention,
    tracklet_nce,
)

MASK = torch.tensor([[True, False, True, True], [False] * 4])
VALID = torch.tensor([[True, True, True], [True, True, False]])
LABELS = (torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 0, 4, 2]))
EXCLUDED = torch.tensor([1, -1, 0, 2])
SHAPES = {
    "queries": (2, 3, 4), "regions": (2, 4, 4), "position": (4, 4), "bias": (2, 3, 4),
    "responses": (2, 3, 2, 4), "pooled": (2, 2, 4), "anchors": (4, 3), "candidates": (5, 3), "temperature": (),
}  # fmt: skip


def attend(backend, queries, regions, position, bias):
    output, weights = region_attention(
        queries, regions, key_position=position, region_mask=MASK, attn_bias=bias, layer_norm_eps=1e-3,
        return_map=True, backend=backend,
    )  # fmt: skip
    return output.sum(-1) + weights.square().sum(-1)


def contrast(backend, responses, pooled):
    terms = mtc_loss(responses, pooled, valid=VALID, temporal_form="absolute", clamp_repulsion=True, backend=backend)
    return torch.stack(list(terms))


def nce(backend, anchors, candidates, temperature):
    temperature = 0.5 + temperature.square()
    options = {"temperature": temperature, "symmetric": True, "excluded": EXCLUDED, "backend": backend}
    return tracklet_nce(anchors, candidates, LABELS, **options)


def pool(backend, responses, pooled):
    tracklets, saliency = pool_tracklets(responses, pooled, temperature=0.5, valid=VALID, backend=backend)
    return tracklets.square().sum() + saliency.square().sum()


def link(method):
    return lambda backend, responses: link_tracklets(responses, method=method, backend=backend).similarity


#: Name of the operation, function of the backend and the tensors, and the names of the tensors.
OPERATIONS = {
    "attention": ("region_attention", attend, ["queries", "regions", "position", "bias"]),
    "contrast": ("mtc_loss", contrast, ["responses", "pooled"]),
    "nce": ("tracklet_nce", nce, ["anchors", "candidates", "temperature"]),
    "pool": ("pool_tracklets", pool, ["responses", "pooled"]),
    "link": ("link_tracklets", link("optimal"), ["responses"]),
    "link-greedy": ("link_tracklets", link("greedy"), ["responses"]),
    "link-index": ("link_tracklets", link("index"), ["responses"]),
}
INPUTS = [
    pytest.param(operation, argument, id=f"{name}-{argument}")
    for name, operation in OPERATIONS.items()
    for argument in operation[2]
]


def squared(function):
    return lambda tensor: function(tensor).square().sum()


def forward_over_reverse(function, point, direction):
    leaf = point.clone().requires_grad_()
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(squared(function)(forward_ad.make_dual(leaf, direction)), leaf)
        return forward_ad.unpack_dual(gradient).tangent


def dual_gradient(function, point, direction):
    """The tangent enters in the backward pass of an output from before."""
    leaf = point.clone().requires_grad_()
    output = function(leaf)
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(output, leaf, forward_ad.make_dual(torch.ones_like(output), output.detach()))
        return forward_ad.unpack_dual(gradient).tangent


TRANSFORMS = {
    "jvp": lambda f, x, v: jvp(f, (x,), (v,)),
    "jacfwd": lambda f, x, v: jacfwd(f)(x),
    "jacrev": lambda f, x, v: jacrev(f)(x),
    "hessian": lambda f, x, v: hessian(squared(f))(x),
    "jacrev of jacrev": lambda f, x, v: jacrev(jacrev(squared(f)))(x),
    "jvp of vjp": lambda f, x, v: jvp(vjp(squared(f), x)[1], (v.sum(),), (v.sum(),)),
    "forward-mode jacobian": lambda f, x, v: functional.jacobian(f, x, strategy="forward-mode", vectorize=True),
    "vectorized jacobian": lambda f, x, v: functional.jacobian(f, x, vectorize=True),
    "forward over reverse": forward_over_reverse,
    "dual gradient": dual_gradient,
}


def functions_of(operation, argument, backend, dtype):
    """Return the operation, and its reference, as functions of one tensor, and two values of this tensor."""
    name, function, names = operation
    tensors = {other: torch.randn(SHAPES[other], dtype=dtype) for other in names}
    if backend is not None:
        skip_unsupported(name, backend, next(iter(tensors.values())))

    def of_argument(backend):
        return lambda tensor: function(backend, *(tensors | {argument: tensor}).values())

    return of_argument(backend), of_argument("reference"), tensors[argument], torch.randn(SHAPES[argument], dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("operation, argument", INPUTS)
def test_derivatives(operation, argument, transform):
    backend = "cpp" if operation[0] == "link_tracklets" else "torch"
    function, reference, point, direction = functions_of(operation, argument, backend, torch.float64)
    found, expected = transform(function, point, direction), transform(reference, point, direction)
    assert found is not None, "the tangent was lost"
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["attention", "pool"])
def test_derivatives_of_the_kernels(operation):
    pytest.importorskip("triton")
    operation = OPERATIONS[operation]
    function, reference, point, direction = functions_of(operation, operation[2][0], "triton", torch.float32)
    for transform in (TRANSFORMS["jvp"], dual_gradient, lambda f, x, v: grad(squared(f))(x)):
        found, expected = transform(function, point, direction), transform(reference, point, direction)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("operation", ["attention", "link"])
def test_linearize(operation):
    operation = OPERATIONS[operation]
    function, _, point, direction = functions_of(operation, operation[2][0], None, torch.float64)
    expected = jvp(function, (point,), (direction,))[1]
    torch.testing.assert_close(linearize(function, point)[1](direction), expected)


@pytest.mark.parametrize("operation, argument", INPUTS)
def test_gradients_of_each_sample(operation, argument):
    backend = "cpp" if operation[0] == "link_tracklets" else "torch"
    function, _, point, direction = functions_of(operation, argument, backend, torch.float64)
    samples = torch.stack([point, direction])
    expected = torch.stack([grad(squared(function))(sample) for sample in samples])
    torch.testing.assert_close(vmap(grad(squared(function)))(samples), expected)
    of_all = grad(lambda samples: vmap(squared(function))(samples).sum())(samples)
    torch.testing.assert_close(of_all, expected)
    torch.testing.assert_close(vmap(lambda x: jvp(squared(function), (x,), (x,))[1])(samples),
                               (expected * samples).reshape(2, -1).sum(1))  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("route", ["folded", "projected"])
def test_derivative_of_the_module_along_inputs_and_parameters(route, masked):
    module = RegionCrossAttention(4, 2, dtype=torch.float64)
    point = ({name: p.detach() for name, p in module.named_parameters()}, *torch.randn(2, 2, 4, 4).double())
    direction = ({name: torch.randn_like(p) for name, p in point[0].items()}, *torch.randn(2, 2, 4, 4).double())
    mask = MASK if masked else None

    def call(parameters, queries, regions):
        return functional_call(module, parameters, (queries, regions), {"route": route, "region_mask": mask})[0]

    def moved(step):
        parameters = {name: p + step * direction[0][name] for name, p in point[0].items()}
        return call(parameters, point[1] + step * direction[1], point[2] + step * direction[2])

    output, tangent = jvp(call, point, direction)
    torch.testing.assert_close(output, call(*point))
    torch.testing.assert_close(tangent, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)
    gradients = grad(lambda parameters: call(parameters, *point[1:]).square().sum())(point[0])
    call(dict(module.named_parameters()), *point[1:]).square().sum().backward()
    torch.testing.assert_close(gradients["out_proj.weight"], module.out_proj.weight.grad)
    torch.testing.assert_close(gradients["in_proj_weight"], module.in_proj_weight.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forward_mode_in_16_bits(dtype):
    queries, regions = (torch.randn(2, count, 8, dtype=dtype) for count in (3, 5))
    results = jvp(lambda q: region_attention(q, regions), (queries,), (queries,))
    expected = jvp(lambda q: region_attention(q, regions.double()), (queries.double(),), (queries.double(),))
    assert [result.dtype for result in results] == [dtype] * 2
    torch.testing.assert_close([result.double() for result in results], list(expected), rtol=0.02, atol=0.02)


def test_results_without_derivatives_support_transforms():
    cost, order = torch.rand(2, 3, 3), torch.zeros(1, 2, 2, dtype=torch.int64)
    columns, tangent = jvp(lambda c: linear_assignment(c).double(), (cost,), (cost,))
    assert torch.equal(columns, linear_assignment(cost).double()) and not tangent.any()
    values = torch.randn(1, 2, 2, 3)
    gathered = jvp(lambda v: gather_tracklets(v, order), (values,), (2 * values,))[1]
    torch.testing.assert_close(gathered, 2 * values[:, :, :1].expand_as(values))


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("transform", [grad, jacfwd, lambda f: lambda x: vmap(f)(x[None])], ids=["grad", "jvp", "vmap"])
def test_a_process_group_is_refused(group, transform):
    anchors = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"tracklet_nce: group supports neither torch.func .* pass group=None"):
        transform(lambda a: tracklet_nce(a, anchors, torch.arange(3), temperature=1.0, group=group))(anchors)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["jvp", "jacrev"])
def test_transforms_inside_a_compiled_graph(transform):
    function, _, point, direction = functions_of(OPERATIONS["attention"], "regions", "torch", torch.float64)
    compiled = torch.compile(lambda x, v: TRANSFORMS[transform](function, x, v), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(point, direction), TRANSFORMS[transform](function, point, direction))
