"""`region_attention`: masks, empties, layouts, autocast, the compiler, backends, and every error."""

import math

import pytest
import torch
from torch import Tensor

from art_kernels import region_attention
from art_kernels.region_attention import launch

BACKENDS = ["native", "reference"]


def inputs(device="cpu", frames=3, rows=2, count=7, channels=12, **options) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(frames, rows, channels), (frames, count, channels), (count, channels)]
    queries, regions, position = (torch.randn(shape, device=device, **options) for shape in shapes)
    return queries, regions, position


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_map_and_default_scale(device, backend):
    queries, regions, _ = inputs(device)
    output, weights = region_attention(queries, regions, return_map=True, backend=backend)
    expected = torch.softmax(queries @ regions.mT / math.sqrt(12), -1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, expected @ regions)
    torch.testing.assert_close(region_attention(queries, regions, backend=backend), output, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_have_the_dtype_of_the_inputs(device, dtype, backend):
    queries, regions, position = inputs(device, dtype=dtype)
    results = region_attention(
        queries, regions, key_position=position, layer_norm_eps=1e-5, return_map=True, backend=backend
    )
    assert [result.dtype for result in results] == [dtype, dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
def test_masked_regions_reach_neither_output_nor_gradient(device, backend, layer_norm_eps):
    queries, regions, position = inputs(device, requires_grad=True)
    mask = torch.rand(3, 7, device=device) > 0.4
    mask[:, 0] = True

    def run(regions):
        outputs = region_attention(
            queries,
            regions,
            key_position=position,
            region_mask=mask,
            layer_norm_eps=layer_norm_eps,
            return_map=True,
            backend=backend,
        )
        gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), [queries, regions, position])
        return [*outputs, *gradients]

    clean = run(regions)
    for poison in (math.nan, math.inf):
        poisoned = run(regions.detach().masked_fill(~mask[:, :, None], poison).requires_grad_())
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    assert (clean[1].masked_select(~mask[:, None, :].expand(3, 2, 7)) == 0).all()
    assert (clean[3][~mask] == 0).all()
    assert (clean[3][mask] != 0).any(-1).all()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("backend", BACKENDS)
def test_frame_with_no_region_to_attend_is_zero(device, backend):
    queries, regions, _ = inputs(device, requires_grad=True)
    mask = torch.ones(3, 7, dtype=torch.bool, device=device)
    mask[1] = False
    poisoned = regions.detach().masked_fill(~mask[:, :, None], math.nan).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        output, weights = region_attention(queries, poisoned, region_mask=mask, return_map=True, backend=backend)
        (output.exp().sum() + weights.exp().sum()).backward()
    assert (output[1] == 0).all() and (weights[1] == 0).all()
    assert (queries.grad[1] == 0).all() and (poisoned.grad[1] == 0).all()
    unmasked = region_attention(queries[[0, 2]], regions[[0, 2]], backend=backend)
    torch.testing.assert_close(output[[0, 2]], unmasked)
    assert (queries.grad[[0, 2]] != 0).any() and poisoned.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames, rows, count", [(0, 2, 7), (3, 0, 7), (3, 2, 0), (0, 0, 0)])
def test_empty_sizes(device, backend, frames, rows, count):
    queries, regions, position = inputs(device, frames, rows, count, requires_grad=True)
    output, weights = region_attention(
        queries, regions, key_position=position, layer_norm_eps=1e-5, return_map=True, backend=backend
    )
    assert output.shape == (frames, rows, 12) and weights.shape == (frames, rows, count)
    assert (output == 0).all()
    (output.sum() + weights.sum()).backward()
    assert (queries.grad == 0).all() and (regions.grad == 0).all() and (position.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_scores_stay_finite(device, backend):
    queries = torch.tensor([[[1e4], [-1e4]]], device=device, requires_grad=True)
    regions = torch.tensor([[[1.0], [-1.0], [0.5]]], device=device, requires_grad=True)
    output, weights = region_attention(queries, regions, scale=1.0, return_map=True, backend=backend)
    assert output.tolist() == [[[1.0], [-1.0]]]
    assert weights.tolist() == [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    (output.sum() + weights.sum()).backward()
    assert queries.grad.tolist() == [[[0.0], [0.0]]]
    assert regions.grad.tolist() == [[[1.0], [1.0], [0.0]]]


def test_layout_does_not_change_the_result(device):
    queries, regions, position = inputs(device)
    mask = torch.rand(7, 3, device=device) > 0.3
    expected = region_attention(queries, regions, key_position=position, region_mask=mask.mT.contiguous())
    tokens_first = regions.transpose(0, 1).contiguous().transpose(0, 1)  # [N, F, C] in memory
    channels_first = regions.mT.contiguous().mT  # [F, C, N] in memory
    every_other = torch.stack([regions, regions], 1).flatten(0, 1)[::2]
    for layout in (tokens_first, channels_first, every_other):
        assert not layout.is_contiguous()
        result = region_attention(
            queries.mT.contiguous().mT, layout, key_position=position.mT.contiguous().mT, region_mask=mask.mT
        )
        torch.testing.assert_close(result, expected)
    expanded = region_attention(queries, regions[:1].expand(3, -1, -1))
    torch.testing.assert_close(expanded, region_attention(queries, regions[:1].repeat(3, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_a_matrix_product_does(device, dtype):
    queries, regions, position = inputs(device)
    with torch.autocast(device.type, dtype):
        outputs = region_attention(queries, regions.bfloat16(), key_position=position, return_map=True)
    expected = region_attention(
        queries.to(dtype), regions.bfloat16().to(dtype), key_position=position.to(dtype), return_map=True
    )
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    assert outputs[0].dtype == dtype
    with torch.autocast(device.type, dtype):
        assert region_attention(queries.double(), regions.double()).dtype == torch.float64
        assert region_attention(queries, regions, layer_norm_eps=1e-5).dtype == dtype


def test_two_runs_give_the_same_bits(device):
    def run():
        generator = torch.Generator().manual_seed(3)
        shapes = [(4, 6, 40), (4, 33, 40), (33, 40)]
        leaves = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
        output = region_attention(leaves[0], leaves[1], key_position=leaves[2])
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_compiles_into_one_graph_for_all_batch_sizes(device):
    compiled = torch.compile(region_attention, fullgraph=True, backend="aot_eager")
    for frames in (3, 5):
        queries, regions, position = inputs(device, frames, requires_grad=True)
        mask = torch.rand(frames, 7, device=device) > 0.4
        for tensor in (queries, regions, mask):
            torch._dynamo.mark_dynamic(tensor, 0)
        options = {"key_position": position, "region_mask": mask, "layer_norm_eps": 1e-5, "return_map": True}
        results = []
        for function in (compiled, region_attention):
            with torch.compiler.set_stance("default" if frames == 3 else "fail_on_recompile"):
                output, weights = function(queries, regions, **options)
            loss = output.square().sum() + weights.square().sum()
            results.append([output, weights, *torch.autograd.grad(loss, [queries, regions, position])])
        torch.testing.assert_close(*results)


class Attention(torch.nn.Module):
    def forward(self, queries: Tensor, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return region_attention(queries, regions, region_mask=mask, return_map=True)


def test_exports_with_a_free_batch_size():
    frames = torch.export.Dim("frames")
    example = (*inputs()[:2], torch.rand(3, 7) > 0.4)
    program = torch.export.export(Attention(), example, dynamic_shapes=({0: frames},) * 3)
    arguments = (*inputs(frames=5)[:2], torch.rand(5, 7) > 0.4)
    torch.testing.assert_close(program.module()(*arguments), Attention()(*arguments))


def test_environment_names_the_default_backend(monkeypatch):
    queries, regions, _ = inputs()
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setenv("ART_KERNELS_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"region_attention: ART_KERNELS_BACKEND=triton cannot serve"):
        region_attention(queries, regions)
    region_attention(queries, regions, backend="native")


def error_cases():
    queries, regions, position = inputs()
    mask = torch.ones(3, 7, dtype=torch.bool)
    return {
        "queries no tensor": (
            [1.0],
            regions,
            {},
            TypeError,
            r"queries is \[1.0\] of type list, expected a torch.Tensor",
        ),
        "regions none": (queries, None, {}, TypeError, r"regions is None, expected a torch.Tensor of shape \[F,N,C\]"),
        "queries rank": (
            queries[0],
            regions,
            {},
            ValueError,
            r"queries has shape \[2, 12\], .* 3 dimensions \[F,M,C\]",
        ),
        "regions rank": (
            queries,
            regions[0],
            {},
            ValueError,
            r"regions has shape \[7, 12\], .* 3 dimensions \[F,N,C\]",
        ),
        "queries dtype": (queries.int(), regions, {}, TypeError, r"queries has dtype torch.int32, expected float16"),
        "regions dtype": (queries, regions.long(), {}, TypeError, r"regions has dtype torch.int64, expected float16"),
        "dtypes differ": (
            queries.half(),
            regions,
            {},
            TypeError,
            r"queries has dtype torch.float16, expected torch.float32",
        ),
        "frames": (queries[:2], regions, {}, ValueError, r"queries has shape \[2, 2, 12\], expected .* = \[3, 2, 12\]"),
        "channels": (
            queries[..., :5],
            regions,
            {},
            ValueError,
            r"queries has shape \[3, 2, 5\], expected .* \[3, 2, 12\]",
        ),
        "no channel": (queries[..., :0], regions[..., :0], {}, ValueError, r"queries has .* with at least one channel"),
        "device": (queries.to("meta"), regions, {}, ValueError, r"queries is on meta, expected cpu, where regions is"),
        "position shape": (queries, regions, {"key_position": position[1:]}, ValueError, r"key_position .* \[7, 12\]"),
        "position rank": (queries, regions, {"key_position": regions}, ValueError, r"key_position has .* \[N,C\]"),
        "position dtype": (queries, regions, {"key_position": position.double()}, TypeError, r"key_position has dtype"),
        "position device": (queries, regions, {"key_position": position.to("meta")}, ValueError, r"key_position is on"),
        "position type": (queries, regions, {"key_position": 1}, TypeError, r"key_position is 1 of type int"),
        "mask type": (queries, regions, {"region_mask": [True]}, TypeError, r"region_mask is .* expected a boolean"),
        "mask dtype": (
            queries,
            regions,
            {"region_mask": mask.float()},
            TypeError,
            r"region_mask has dtype torch.float32",
        ),
        "mask shape": (
            queries,
            regions,
            {"region_mask": mask.mT},
            ValueError,
            r"region_mask has shape \[7, 3\].*\[3, 7\]",
        ),
        "mask device": (queries, regions, {"region_mask": mask.to("meta")}, ValueError, r"region_mask is on meta"),
        "scale type": (queries, regions, {"scale": "big"}, TypeError, r"scale is 'big' of type str, expected a number"),
        "scale nan": (queries, regions, {"scale": math.nan}, ValueError, r"scale is nan, expected a finite number"),
        "eps type": (queries, regions, {"layer_norm_eps": True}, TypeError, r"layer_norm_eps is True of type bool"),
        "eps zero": (queries, regions, {"layer_norm_eps": 0.0}, ValueError, r"layer_norm_eps is 0.0, .* \(0.0, inf\)"),
        "map flag": (queries, regions, {"return_map": 1}, TypeError, r"return_map is 1 of type int, expected True or"),
        "unknown backend": (
            queries,
            regions,
            {"backend": "cuda"},
            ValueError,
            r"backend='cuda' is not a backend, expected",
        ),
        "absent backend": (
            queries,
            regions,
            {"backend": "triton"},
            ValueError,
            r"'triton' cannot .* 'native', 'reference'",
        ),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_name_the_argument(case, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)  # the kernels as they are without TRITON_INTERPRET=1
    queries, regions, options, error, message = error_cases()[case]
    with pytest.raises(error, match="region_attention: .*" + message):
        region_attention(queries, regions, **options)
