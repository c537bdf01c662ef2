"""The notebooks run, their figures show something, and they are committed without outputs."""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from docs.hooks.notebooks import executed

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"quick_start": 3, "region_attention": 2, "tracklets": 3, "vjepa2_heads": 2}


def test_all_notebooks_are_tested():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_is_committed_without_outputs(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "clear all outputs"
    assert len(code) <= 12


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_its_figures_are_not_empty(name):
    """The site shows the same cached run."""
    cells = executed(ROOT / "notebooks" / f"{name}.ipynb").cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(images) == FIGURES[name]
    for image in images:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))
        colored = (np.ptp(pixels.astype(int), axis=-1) > 60).mean()  # axes and labels are gray
        assert min(pixels.shape[:2]) > 150 and colored > 0.003, f"{100 * colored:.2f} % of a figure is colored"


def test_empty_axes_are_detected():
    figure = Figure(figsize=(7, 3))
    figure.subplots().set(xlabel="step", ylabel="loss", title="nothing is drawn")
    page = io.BytesIO()
    figure.savefig(page)
    pixels = np.asarray(Image.open(page).convert("RGB"))
    assert (np.ptp(pixels.astype(int), axis=-1) > 60).mean() == 0
