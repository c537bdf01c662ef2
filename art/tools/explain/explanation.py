"""What a model looked at in a clip, as arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from art.eval.report.response_maps import map_peak
from art.model.pretrained import VideoClassifier, evaluating
from art.model.semantics import TEMPLATES, cosine
from art.tools.explain.blocks import NotAvailable
from art.tools.explain.boxes import response_boxes
from art.tools.explain.grad_cam import grad_cam
from art.tools.explain.rollout import attention_rollout
from art.tools.explain.shown import ShownFrames, read_shown

_AT_ONCE = 4  # beginnings of the clip in a batch


@dataclass(frozen=True)
class Query:
    """The text that asks for a tracklet.

    Attributes:
        label: its class.
        name: the name of that class.
        prompt: the prompt of the class that is nearest to the clip.
        similarity: their cosine.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=0)
        >>> sorted(query.name for query in explanation.queries)
        ['run', 'walk']
    """

    label: int
    name: str
    prompt: str
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """What a model looked at in a clip of F frames, of which it was shown T.

    Positions are shares of ``frames``, (0, 0) at the top left; ``crop`` says where those lie in a whole frame. What
    belongs to tracklets is None where the model has none (kind "backbone"), and ``queries`` is empty.

    Attributes:
        clip: the file.
        kind: of the model: "art" or "backbone".
        class_names: Y names.
        size: height and width of an upright frame of the file, in pixels.
        crop: left, top, right and bottom of what the model is shown, shares of a whole frame.
        times: ``[F]``, when each frame of the file is shown, seconds.
        sampled: ``[T]``, the positions among them of what the model was shown.
        frames: ``[T, S, S, 3]``, that, as RGB.
        probabilities: ``[Y]``, the model's answer.
        maps: ``[T, K, h, w]``, response maps: each sums to 1.
        centres: ``[T, K, 2]``, (x, y) of the middle of the strongest response: the centroid of the peak and the cells
            around it.
        boxes: ``[T, K, 4]``, left, top, right and bottom around the peak, see :func:`.boxes.response_boxes`.
        saliency: ``[T, K]``, how much each frame weighs in each tracklet; sums to 1 over T.
        queries: K texts.
        beginnings: ``[M]``, seconds at which each beginning of the clip ends.
        probabilities_over_time: ``[M, Y]``, the model's answer to T frames of each beginning of the clip: what it would
            have said had the clip ended there. The last is ``probabilities``.
        target: the class of ``grad_cam``.
        grad_cam: ``[T, h, w]``, see :func:`.grad_cam.grad_cam`.
        rollout: ``[T, h, w]``, see :func:`.rollout.attention_rollout`.
        missing: why "grad_cam" or "rollout" is None.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=0)
        >>> explanation.maps.shape, explanation.boxes.shape  # 2 frames, 2 tracklets
        ((2, 2, 14, 14), (2, 2, 4))
        >>> explanation.class_names[explanation.predicted] in ("run", "walk")
        True
    """

    clip: Path
    kind: str
    class_names: list[str]
    size: tuple[int, int]
    crop: tuple[float, float, float, float]
    times: Float64[np.ndarray, " f"]
    sampled: Int64[np.ndarray, " t"]
    frames: UInt8[np.ndarray, "t s s 3"]
    probabilities: Float32[np.ndarray, " y"]
    maps: Float32[np.ndarray, "t k h w"] | None
    centres: Float32[np.ndarray, "t k 2"] | None
    boxes: Float[np.ndarray, "t k 4"] | None
    saliency: Float32[np.ndarray, "t k"] | None
    queries: tuple[Query, ...]
    beginnings: Float64[np.ndarray, " m"]
    probabilities_over_time: Float32[np.ndarray, "m y"]
    target: int
    grad_cam: Float32[np.ndarray, "t h w"] | None
    rollout: Float32[np.ndarray, "t h w"] | None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def num_tracklets(self) -> int:
        """K; 0 where there are none."""
        return 0 if self.maps is None else self.maps.shape[1]

    def best(self, count: int) -> list[int]:
        """The ``count`` most probable classes, the best first."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    def as_json(self) -> dict[str, Any]:
        """Everything but pictures and maps."""
        over_time = self.probabilities_over_time
        return {
            "clip": str(self.clip),
            "kind": self.kind,
            "class_names": self.class_names,
            "probabilities": _rounded(self.probabilities),
            "frames": len(self.times),
            "sampled_seconds": _rounded(self.times[self.sampled]),
            "crop": _rounded(np.array(self.crop)),
            "tracklets": [
                {
                    "class": query.name,
                    "prompt": query.prompt,
                    "similarity": round(query.similarity, 6),
                    "saliency": _rounded(_there(self.saliency)[:, k]),
                    "centres": _rounded(_there(self.centres)[:, k]),
                    "boxes": _rounded(_there(self.boxes)[:, k]),
                }
                for k, query in enumerate(self.queries)
            ],
            "beginnings_seconds": _rounded(self.beginnings),
            "probabilities_over_time": _rounded(over_time),
            "grad_cam_class": self.class_names[self.target],
            "missing": self.missing,
        }


def _there(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def _rounded(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 6).tolist()


def explain(
    model: VideoClassifier, clip: str | os.PathLike[str], *, moments: int = 24, target: int | None = None
) -> Explanation:
    """What ``model`` looked at in a video file.

    Args:
        model: on any device; its answer is that of :meth:`art.VideoClassifier.predict`.
        clip: the file.
        moments: M, how many beginnings of the clip are classified; each is a forward pass. 0 is none.
        target: the class that Grad-CAM asks about; None is the model's answer.

    Raises:
        art.data.decoding.video.VideoError: the file cannot be read.
        ValueError: ``moments`` is negative, or ``target`` is no class.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=3)
        >>> explanation.probabilities_over_time.shape
        (3, 2)
    """
    if moments < 0:
        raise ValueError(f"moments is {moments}, expected a number of passes, at least 0")
    if target is not None and not 0 <= target < len(model.class_names):
        raise ValueError(f"target is {target}, expected a class, 0 to {len(model.class_names) - 1}")
    shown = read_shown(Path(clip), model, moments)
    with evaluating(model) as device:
        video = shown.video.to(device)
        out = model(video, return_maps=True) if model.kind == "art" else model(video)
        probabilities = out.logits[0].float().softmax(0).cpu().numpy()
        over_time = _over_time(model, shown, device)
        target = int(probabilities.argmax()) if target is None else target
        missing: dict[str, str] = {}
        maps: dict[str, np.ndarray | None] = {}
        head: Any = model.video_head
        for name, make in (
            ("grad_cam", lambda: grad_cam(model.backbone, head, video, target)),
            ("rollout", lambda: attention_rollout(model.backbone, video)),
        ):
            try:
                maps[name] = make().float().cpu().numpy()
            except NotAvailable as reason:
                maps[name], missing[name] = None, str(reason)
        tracked = _tracked(model, out) if model.kind == "art" else _NO_TRACKLETS
    return Explanation(
        clip=Path(clip),
        kind=model.kind,
        class_names=list(model.class_names),
        size=shown.size,
        crop=_crop(model, *shown.size),
        times=shown.times,
        sampled=shown.sampled,
        frames=shown.video[0].permute(0, 2, 3, 1).contiguous().numpy(),
        probabilities=probabilities,
        beginnings=shown.times[shown.beginnings - 1],
        probabilities_over_time=over_time,
        target=target,
        missing=missing,
        **maps,  # type: ignore[arg-type]
        **tracked,
    )


_NO_TRACKLETS: dict[str, Any] = {"maps": None, "centres": None, "boxes": None, "saliency": None, "queries": ()}


def _tracked(model: Any, out: Any) -> dict[str, Any]:
    maps = out.maps[0].float().cpu()
    return {
        "maps": maps.numpy(),
        "centres": map_peak(maps, refine=True).numpy(),
        "boxes": response_boxes(maps.numpy()),
        "saliency": out.saliency[0].float().cpu().numpy(),
        "queries": _queries(model, out),
    }


def _queries(model: Any, out: Any) -> tuple[Query, ...]:
    """As :meth:`art.model.semantics.SemanticsBank.select` chooses them."""
    bank = model.semantics
    likeness = cosine(out.video_latent, bank.projection(bank.bank))[0]  # [P, Y]
    templates = model.options.templates or TEMPLATES
    texts = model.prompts or model.class_names
    queries = []
    for label in out.selected[0].tolist():
        similarity, prompt = likeness[:, label].max(0)
        text = templates[int(prompt)].replace("{label}", texts[label])
        queries.append(Query(label, model.class_names[label], text, float(similarity)))
    return tuple(queries)


def _over_time(model: VideoClassifier, shown: ShownFrames, device: torch.device) -> Float32[np.ndarray, "m y"]:
    answers: list[Tensor] = [torch.empty(0, len(model.class_names))]
    for begin in range(0, len(shown.beginnings), _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, len(shown.beginnings)))
        batch = torch.stack([shown.beginning(number) for number in numbers]).to(device)
        answers.append(model(batch).logits.float().softmax(1).cpu())
    return torch.cat(answers).numpy()


def _crop(model: VideoClassifier, height: int, width: int) -> tuple[float, float, float, float]:
    """Where the crop lies in a frame, from where the corners of the frame lie in the crop."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    start, end = model.centre_crop.locate(corners, height, width)
    low, high = -start / (end - start), (1 - start) / (end - start)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
