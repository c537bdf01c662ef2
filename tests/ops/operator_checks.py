"""Checks that every operation passes: compilation, export, CUDA graphs, synchronization, and determinism."""

import io

import pytest
import torch

from art_kernels._core import backends

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
#: Dtypes of the Triton kernels; the interpreter multiplies bfloat16 as integers.
KERNEL_DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


def requires_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not GPU, reason="requires a GPU")(test))


def outputs_and_gradients(function, tensors):
    """Return the outputs, and the gradients of the sum of their squares for the tensors that require one."""
    outputs = function(*tensors)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    loss = sum(output.square().sum() for output in outputs if output.requires_grad)
    return [*outputs, *(torch.autograd.grad(loss, leaves) if leaves else [])]


def assert_same_bits_twice(function, tensors):
    torch.testing.assert_close(
        outputs_and_gradients(function, tensors), outputs_and_gradients(function, tensors), rtol=0, atol=0
    )


def assert_compiles_once(function, make_inputs, batches=(2, 5)):
    """Compile `function` into one graph that is valid for every batch size; ``make_inputs(batch)`` returns tensors."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for batch in batches:
        tensors = make_inputs(batch)
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        with torch.compiler.set_stance("default" if batch == batches[0] else "fail_on_recompile"):
            found = outputs_and_gradients(compiled, tensors)
        torch.testing.assert_close(found, outputs_and_gradients(function, tensors))


def assert_exports(function, make_inputs, batches=(2, 5)):
    """Export `function` with a dynamic batch size, save and load it, and compare it at another size."""

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    example, other = (tuple(tensor.detach() for tensor in make_inputs(batch)) for batch in batches)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), example, dynamic_shapes=(tuple({0: batch} for _ in example),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.export.load(buffer).module()(*other), function(*other))


def assert_captured_in_cuda_graph(function, tensors):
    """Capture `function` and its gradients, which never synchronize, in a CUDA graph; replay it with another input."""
    outputs_and_gradients(function, tensors)  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs_and_gradients(function, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs_and_gradients(function, tensors)
    with torch.no_grad():
        tensors[0].copy_(torch.randn_like(tensors[0]))
    graph.replay()
    torch.testing.assert_close(captured, outputs_and_gradients(function, tensors), rtol=0, atol=0)


def skip_unsupported(operation, backend, tensor):
    """Skip the test if the backend of the operation does not support the tensor."""
    reason = backends.unsupported_reason(operation, backend, tensor)
    if reason is not None:
        pytest.skip(reason)


def other_layouts(tensor):
    """Return equal tensors with the first two or last two dimensions swapped in memory, with gaps, and unaligned."""
    swapped = [tensor.transpose(*dims).contiguous().transpose(*dims) for dims in ((0, 1), (-2, -1))]
    every_other = torch.stack([tensor, tensor], 1).flatten(0, 1)[::2]
    unaligned = tensor.new_empty(1 + tensor.numel())[1:].view_as(tensor).copy_(tensor)
    return [*swapped, every_other, unaligned]
