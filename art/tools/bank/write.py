"""The bank of a checkpoint as pictures and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from art.data.files import atomic_write, check_writable
from art.eval.evaluate import find_checkpoint
from art.eval.report.style import png_bytes
from art.model.pretrained import load_model
from art.tools.bank.embed import METHODS, Embedding, embed
from art.tools.bank.figures import embedding_figure, prompts_figure, similarity_figure
from art.tools.bank.measure import BankView, look_at_bank


def bank_to_folder(checkpoint: Path, out: Path, tell: Callable[[str], None] = print) -> tuple[BankView, list[Path]]:
    """Write ``bank.json``, ``similarity.png``, ``prompts.png`` and, where there is a library for it, ``embedding.png``.

    Args:
        checkpoint: a checkpoint of kind "art", or the folder of a run.
        out: a folder, made if need be.
        tell: is told what is left out, and why.

    Returns:
        what was measured, and the files.

    Raises:
        ValueError: ``out`` is no folder; the model has no bank, or not that of its texts.
        FileNotFoundError: there is no such checkpoint.
    """
    check_writable(out, "out")
    view = look_at_bank(load_model(find_checkpoint(checkpoint)))
    if view.assumed:
        tell("the checkpoint does not say what its prompts said of each class: taken to be the class names")
    embeddings: list[Embedding] = []
    for method in METHODS:
        try:
            embeddings.append(embed(view, method))
        except ModuleNotFoundError as error:
            tell(f"{method} is left out: {error}")
    figures: dict[str, Figure] = {"similarity.png": similarity_figure(view), "prompts.png": prompts_figure(view)}
    if embeddings:
        figures["embedding.png"] = embedding_figure(view, embeddings)
    numbers = view.as_json() | {
        "embeddings": {
            e.method: {"before": e.before.tolist(), "after": e.after.tolist(), "labels": e.labels.tolist()}
            for e in embeddings
        }
    }
    text = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    atomic_write(out / "bank.json", lambda path: path.write_text(text, encoding="utf-8"))
    for name, figure in figures.items():
        content = png_bytes(figure)
        atomic_write(out / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    return view, [out / name for name in ("bank.json", *figures)]
