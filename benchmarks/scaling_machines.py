"""What is published of machines that train: rates, links, cores; and what the projection assumes of all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One of the equal machines of a cluster. All numbers are the makers' own, as peak rates in one direction.

    Attributes:
        name: of the cluster.
        device: what each rank computes on; a part of the name that PyTorch gives it.
        devices: ranks a machine.
        tflops: of one device, 10¹² operations a second in bfloat16 with sums in float32, without sparsity.
        memory_gbs: of one device, 10⁹ bytes a second.
        link_gbs: from one device to the others of the machine, 10⁹ bytes a second.
        network_gbs: from one machine to the others, all its adapters together, 10⁹ bytes a second.
        cores: of the machine, for decoding.
        source: who says so, and what of it is a choice of ours.
    """

    name: str
    device: str
    devices: int
    tflops: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float
    cores: int
    source: str


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "h100", "H100", 8, 989.4, 3350.0, 450.0, 400.0, 112,
            "NVIDIA's data sheets of H100 SXM (989.4 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both ways) and of DGX H100 "
            "(8 GPUs, 8 adapters of 400 Gb/s for computing, 2 × 56 cores)",
        ),
        Machine(
            "a40", "A40", 4, 149.7, 696.0, 31.5, 12.5, 64,
            "NVIDIA's data sheet of A40 (149.7 TFLOP/s, 696 GB/s, PCI Express 4.0 × 16: 31.5 GB/s each way), "
            "the paper's GPU; 4 a machine as in the paper; one port of 100 Gb/s Ethernet and 64 cores are our choice",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What nobody published for this model, and what was not measured. Seconds, shares, counts.

    Attributes:
        device_share: of the device's peak rate that forward and backward pass reach, where no result of such a device
            says it.
        link_share: of a link's peak rate that a collective reaches.
        memory_share: of the memory's peak rate that an optimizer reaches.
        hop_inside: latency from device to device in a machine,
        hop_between: and between machines.
        message: rank 0's work on one message, when the ranks compare notes,
        hop_host: and the latency of one on its way.
        spread: standard deviation of a step's time from rank to rank, as a share of it.
        hours_to_failure: mean time to a failure of one GPU; 419 interruptions in 54 days of 16,384 GPUs are reported
            from the training of Llama 3 (arXiv 2407.21783).
        restart: from a failure until steps are made again.
        checkpoint_every: steps between checkpoints.
        bucket_bytes: of gradients that DDP sends at once: PyTorch's default.
    """

    device_share: float = 0.4
    link_share: float = 0.8
    memory_share: float = 0.7
    hop_inside: float = 3e-6
    hop_between: float = 1e-5
    message: float = 2e-6
    hop_host: float = 3e-5
    spread: float = 0.01
    hours_to_failure: float = 16384 * 54 * 24 / 419
    restart: float = 120.0
    checkpoint_every: int = 200
    bucket_bytes: int = 25 << 20
