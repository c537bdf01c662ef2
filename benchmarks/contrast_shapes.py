"""The sizes at which contrast and pooling are measured, and what must move and be computed at each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class ContrastShape:
    """One problem.

    Attributes:
        name: of it.
        operation: "mtc_loss", "tracklet_nce" or "pool_tracklets".
        sizes: responses [B,T,K,C] (for pooling with as many semantics as tracklets), or anchors and as many candidates
            [M,C].
        cpu_first: what the first size is cut to on a CPU; 0 leaves the shape out there.
    """

    name: str
    operation: str
    sizes: tuple[int, ...]
    cpu_first: int

    def on(self, device: torch.device, *, quick: bool = False) -> ContrastShape | None:
        """The shape as it is measured on a device, an eighth of it with `quick`; None where it is left out."""
        first = self.sizes[0] if device.type == "cuda" else self.cpu_first
        if first == 0:
            return None
        return replace(self, sizes=(max(2, first // 8) if quick else first, *self.sizes[1:]))

    def tiny(self) -> ContrastShape:
        """As many channels over as little else as still is a case of its own: for Triton's interpreter."""
        least = (21,) if self.operation == "tracklet_nce" else (1, 3, 3)
        sizes = tuple(min(size, small) for size, small in zip(self.sizes, least, strict=False))
        return replace(self, sizes=(*sizes, self.sizes[-1]))

    def moved_bytes(self, dtype: torch.dtype, pass_name: str) -> int:
        """Bytes that must move: forward reads the inputs once, backward reads them and writes a gradient of each; with
        gradients made beside the value, both together read once and write once. Pooling keeps nothing: its backward
        pass reads the inputs again."""
        if self.operation == "pool_tracklets":
            inputs, outputs = self._pooled_elements()
            forward, backward = inputs + outputs, 2 * inputs + outputs
            return dtype.itemsize * {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
        elements = torch.Size(self.sizes).numel()
        if self.operation == "mtc_loss":
            elements += elements // self.sizes[1]  # the aggregated tracklets
        else:
            elements *= 2
        return elements * dtype.itemsize * {"forward": 1, "backward": 2, "both": 2}[pass_name]

    def operations(self, pass_name: str) -> int:
        """Operations of the products that cannot be spared: dot products of pairs, and a gradient of either side.

        For pooling those of the weighted sum and of norms too: forward products with the semantics, norms and the sum;
        backward these again, and two products and a sum for the gradients.
        """
        *others, channels = self.sizes
        if self.operation == "pool_tracklets":
            semantics = others[-1]
            forward, backward = semantics + 2, 3 * semantics + 4
            times = {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
            return 2 * torch.Size(self.sizes).numel() * times
        if self.operation == "mtc_loss":
            videos, frames, count = others
            pairs = videos * (frames * count * count + frames * count + count * count)
        else:
            pairs = others[0] ** 2
        return 2 * pairs * channels * {"forward": 1, "backward": 2, "both": 3}[pass_name]

    def described(self) -> str:
        """The sizes as text."""
        if self.operation != "tracklet_nce":
            return "{} videos, {} frames, {} tracklets of {}".format(*self.sizes)
        return "{0} anchors and {0} candidates of {1}".format(*self.sizes)

    def _pooled_elements(self) -> tuple[int, int]:
        """Of responses and semantics; of aggregated tracklets and saliency."""
        videos, frames, count, channels = self.sizes
        tracklets = videos * count
        return tracklets * channels * (frames + 1), tracklets * (channels + frames)


SHAPES = {
    shape.name: shape
    for shape in (
        ContrastShape("paper", "mtc_loss", (24, 16, 2, 256), 24),
        ContrastShape("batch", "mtc_loss", (256, 16, 8, 256), 64),
        ContrastShape("dense", "mtc_loss", (64, 64, 32, 256), 8),
        ContrastShape("pool-paper", "pool_tracklets", (24, 16, 2, 256), 24),
        ContrastShape("pool-batch", "pool_tracklets", (256, 16, 8, 256), 64),
        ContrastShape("pool-dense", "pool_tracklets", (64, 64, 32, 256), 8),
        ContrastShape("nce-4k", "tracklet_nce", (4096, 256), 4096),
        ContrastShape("nce-32k", "tracklet_nce", (32768, 256), 0),
        ContrastShape("nce-128k", "tracklet_nce", (131072, 256), 0),
    )
}
