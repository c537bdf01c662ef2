"""How long a training step takes on many devices: formulas from counts, rates and links, and nothing measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scaling_machines import Assumptions, Machine

STRATEGIES = ("ddp", "fsdp")
#: Bytes of a parameter, of its gradient, and of either of Adam's moments: float32 all of them.
FLOAT = 4
#: Adam reads the parameter, its gradient and both moments, and writes all but the gradient.
OPTIMIZER_BYTES = 7 * FLOAT


@dataclass(frozen=True)
class Work:
    """What a training step has to do.

    Attributes:
        forward_macs: multiply-adds of the forward pass, a clip.
        backward_macs: of the backward pass, with what it computes again, a clip.
        parameters: of the model.
        layers: how many pieces FSDP puts together one at a time.
    """

    forward_macs: float
    backward_macs: float
    parameters: int
    layers: int


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what they are spent on.

    Attributes:
        computing: forward and backward pass.
        sending: what of the exchange of gradients (FSDP: of parameters too) computing does not hide.
        updating: the optimizer.
        notes: ranks tell each other that all is well, before the step.
        slowest: waiting for the slowest rank.
        decoding: what the loader lacks when all of that is over.
        failing: of all steps, what failures cost: lost steps and restarts.
    """

    computing: float
    sending: float
    updating: float
    notes: float
    slowest: float
    decoding: float
    failing: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(vars(self).values())

    @property
    def efficiency(self) -> float:
        """Of the time, the share in which the model is computed and updated."""
        return (self.computing + self.updating) / self.seconds

    @property
    def limit(self) -> str:
        """What, other than computing and updating, takes most."""
        others = {name: value for name, value in vars(self).items() if name not in ("computing", "updating")}
        return max(others, key=lambda name: others[name])


def passes(work: Work, clips: float, operations_per_second: float) -> tuple[float, float]:
    """Seconds of forward and backward pass: two operations a multiply-add."""
    return (
        2 * clips * work.forward_macs / operations_per_second,
        2 * clips * work.backward_macs / operations_per_second,
    )


def predict(
    work: Work,
    machine: Machine,
    ranks: int,
    clips: float,
    *,
    strategy: str,
    assumed: Assumptions,
    clips_per_core: float,
) -> Step:
    """One step of ``ranks`` devices.

    Args:
        work: of the model.
        machine: of which as many are taken as hold the ranks.
        ranks: devices, 1 or more.
        clips: of one rank in a step.
        strategy: of `STRATEGIES`.
        assumed: what is not known.
        clips_per_core: decoded a second.
    """
    forward, backward = passes(work, clips, assumed.device_share * machine.tflops * 1e12)
    sending = exposed(work, machine, ranks, forward, backward, strategy=strategy, assumed=assumed)
    updated = work.parameters / (ranks if strategy == "fsdp" else 1)
    updating = OPTIMIZER_BYTES * updated / (assumed.memory_share * machine.memory_gbs * 1e9)
    notes = notes_seconds(ranks, assumed)
    slowest = assumed.spread * (forward + backward) * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0
    busy = forward + backward + sending + updating + notes + slowest
    decoding = max(0.0, clips / (machine.cores / machine.devices * clips_per_core) - busy)
    step = busy + decoding
    lost = assumed.checkpoint_every * step / 2 + assumed.restart
    failing = step * lost * ranks / (3600 * assumed.hours_to_failure)
    return Step(forward + backward, sending, updating, notes, slowest, decoding, failing)


def exposed(
    work: Work,
    machine: Machine,
    ranks: int,
    forward: float,
    backward: float,
    *,
    strategy: str,
    assumed: Assumptions,
) -> float:
    """Seconds of sending that no computing hides.

    DDP sends gradients in buckets as the backward pass makes them; the last bucket is sent when there is nothing left
    to compute. FSDP gathers each layer's parameters before its forward and its backward pass, and reduces its gradients
    after that; the first layer of each pass has to be waited for.
    """
    if ranks == 1:
        return 0.0
    gradients = FLOAT * work.parameters
    if strategy == "ddp":
        buckets = math.ceil(gradients / assumed.bucket_bytes)
        sending = collective_seconds("all-reduce", gradients, ranks, machine, assumed, calls=buckets)
        return hidden_behind(backward, sending, buckets)
    gather = collective_seconds("all-gather", gradients, ranks, machine, assumed, calls=work.layers)
    scatter = collective_seconds("reduce-scatter", gradients, ranks, machine, assumed, calls=work.layers)
    return hidden_behind(forward, gather, work.layers) + hidden_behind(backward, gather + scatter, work.layers)


def hidden_behind(computing: float, sending: float, pieces: int) -> float:
    """What is left of sending that goes on while computing does: one of its pieces at least, and what takes longer."""
    return max(sending - computing * (1 - 1 / pieces), sending / pieces)


def collective_seconds(
    kind: str, size: float, ranks: int, machine: Machine, assumed: Assumptions, *, calls: int = 1
) -> float:
    """Seconds of `calls` collectives that together carry `size` bytes.

    Rings over all ranks: through each device's link, and out of each machine, go (n - 1) / n of the bytes, and twice as
    many for an all-reduce. The slower of the two holds the other up. Latency: an all-reduce takes a tree over the
    machines where there are several, up and down; the others are rings.
    """
    twice = 2 if kind == "all-reduce" else 1
    rate, latency = bandwidth(ranks, machine, assumed), _latency(kind, ranks, machine, assumed)
    return twice * (ranks - 1) / ranks * size / rate + calls * latency


def bandwidth(ranks: int, machine: Machine, assumed: Assumptions) -> float:
    """Bytes a second at which a ring over the ranks goes."""
    between = machine.network_gbs if ranks > machine.devices else math.inf
    return assumed.link_share * 1e9 * min(machine.link_gbs, between)


def _latency(kind: str, ranks: int, machine: Machine, assumed: Assumptions) -> float:
    inside, machines = min(ranks, machine.devices), math.ceil(ranks / machine.devices)
    if kind == "all-reduce":
        return 2 * ((inside - 1) * assumed.hop_inside + math.ceil(math.log2(machines)) * assumed.hop_between)
    return (ranks - machines) * assumed.hop_inside + (machines - 1) * assumed.hop_between


def notes_seconds(ranks: int, assumed: Assumptions) -> float:
    """All ranks tell rank 0, and rank 0 tells all, over a tree."""
    if ranks == 1:
        return 0.0
    return (ranks - 1) * assumed.message + (1 + math.ceil(math.log2(ranks))) * assumed.hop_host
