"""What a training step keeps for its backward pass, with and without gradient checkpointing and ART's own layers.

``python -m benchmarks.kept_activations`` prints a table: MiB a clip under bfloat16 autocast, counted from the tensors
that autograd saves, each storage once, parameters and buffers left out. No GPU is needed.
"""

from __future__ import annotations

import argparse

import torch

from art import ARTModel

FRAMES, CLASSES = 8, 20


def kept_mib(model: ARTModel, *, device: str = "cpu") -> float:
    """MiB that the forward pass of one clip and its loss keep."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no storage gets the address of a former one

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    video = torch.rand(1, model.num_frames, 3, model.input_size, model.input_size, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    counting = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with counting, torch.autocast(torch.device(device).type, torch.bfloat16):
        model.loss(model(video), labels)
    return sum(sizes.values()) / 2**20


def build(backbone: str, *, recompute: bool, layers: int) -> ARTModel:
    """ART with random weights in training mode; ``layers`` of the spatial semantic enhancement."""
    torch.manual_seed(0)
    return ARTModel(
        [f"class {i}" for i in range(CLASSES)],
        backbone=backbone,
        num_frames=FRAMES,
        backbone_options={"gradient_checkpointing": recompute},
        enhancement_layers=layers,
        semantics=torch.randn(16, CLASSES, 256),
    ).train()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["uniformerv2_b16", "uniformerv2_l14"])
    print(
        "| backbone | checkpointing | MiB a clip | of these, the four enhancement layers |\n| --- | --- | --- | --- |"
    )
    for backbone in parser.parse_args().backbones:
        for recompute in (False, True):
            whole, without = (kept_mib(build(backbone, recompute=recompute, layers=n)) for n in (4, 0))
            share = f"{whole - without:.0f} ({100 * (1 - without / whole):.0f} %)"
            print(f"| `{backbone}` | {'blocks' if recompute else 'none'} | {whole:.0f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
