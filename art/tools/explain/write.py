"""An explanation as files."""

from __future__ import annotations

import json
from pathlib import Path

from art.data.files import atomic_write, check_writable
from art.data.prepare.reencode import check_encoder
from art.eval.evaluate import find_checkpoint
from art.eval.report.style import png_bytes
from art.model.pretrained import load_model
from art.tools.explain.explanation import Explanation, explain
from art.tools.explain.figures import contact_sheet
from art.tools.explain.film import write_film
from art.tools.explain.scene import views_of
from art.train.runtime import resolve_device

FILES = ("film.mp4", "film.gif", "sheet.png", "explanation.json")


def explain_to_folder(
    clip: Path, checkpoint: Path, out: Path, *, top_k: int = 5, moments: int = 24, device: str = "auto"
) -> Explanation:
    """Explain a clip and write :data:`FILES`; what ``art explain`` does.

    Args:
        clip: a video file.
        checkpoint: a checkpoint, or the folder of a run.
        out: a folder, made if need be; files of these names in it are replaced, each as a whole.
        top_k: classes in the charts.
        moments: beginnings of the clip that are classified.
        device: "auto", "cpu", "cuda" and so on.

    Raises:
        ValueError: ``out`` is no folder; a number out of range; a model of which there is nothing to draw.
        FileNotFoundError: there is no such checkpoint.
        art.data.decoding.video.VideoError: the clip cannot be read.
    """
    if top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected at least 1")
    if moments < 0:
        raise ValueError(f"moments: got {moments}, expected at least 0")
    check_writable(out, "out")
    check_encoder()
    model = load_model(find_checkpoint(checkpoint)).to(resolve_device(device))
    explanation = explain(model, clip, moments=moments)
    views_of(explanation)
    write_explanation(explanation, out, top_k=top_k)
    return explanation


def write_explanation(explanation: Explanation, out: Path, *, top_k: int = 5) -> None:
    """Write :data:`FILES` into the folder ``out``; arguments and errors as of :func:`explain_to_folder`."""
    mp4, gif, sheet, numbers = (out / name for name in FILES)
    atomic_write(mp4, lambda film: atomic_write(gif, lambda small: write_film(explanation, film, small, top_k=top_k)))
    atomic_write(sheet, lambda path: path.write_bytes(png_bytes(contact_sheet(explanation, top_k=top_k))))
    text = json.dumps(explanation.as_json(), indent=1, ensure_ascii=False) + "\n"
    atomic_write(numbers, lambda path: path.write_text(text, encoding="utf-8"))
