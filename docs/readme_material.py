"""Draw the figures of README.md and docs/limitations.md, and copy the numbers that they quote.

    python docs/readme_material.py --attention benchmarks/results/region-attention-cpu.json
    python docs/readme_material.py --run runs/motion --compare runs/compare --more runs/more
    python docs/readme_material.py --linking runs/linking --without-residual runs/linking-without-residual
    python docs/readme_material.py --ablation runs/ablate --ablation-seeds runs/ablate-seeds

Writes ``docs/pictures/*.png``, ``docs/results/motion*.json`` and ``linking*.json``, comparison tables as Markdown, and
the tables of ablations into ``docs/ablations.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from art import load_model
from art.data.datasets.base import ClipSet, open_dataset
from art.eval.evaluate import evaluate_checkpoint
from art.eval.report import SampleClip, collect_samples, confusion_figure, tracklet_sheet
from art.eval.report.localization import defining_limb
from art.eval.report.style import png_bytes
from art.experiments.ablate import to_markdown
from art.train.config import load_config

DOCS = Path(__file__).parent
PICTURES, RESULTS = DOCS / "pictures", DOCS / "results"
#: Rows of the README's chart, and the providers of the benchmark with their labels and colors.
SHAPES = {
    "art-256": "ART, 196 × 256",
    "art-768": "ART, 196 × 768",
    "uniformerv2-b": "UniFormerV2-B block, 1,576 × 768",
    "uniformerv2-l": "UniFormerV2-L block, 4,112 × 1,024",
    "attention-pooling": "attention pooling, 257 × 1,024",
}
PROVIDERS = {
    "nn.MultiheadAttention": ("nn.MultiheadAttention", "#b8bec9"),
    "sdpa compiled": ("SDPA, torch.compile", "#7d8696"),
    "folded": ("folded form in plain PyTorch", "#56B4E9"),
    "art_kernels": ("art_kernels", "#D55E00"),
}


def main() -> None:
    """Parse the arguments and write everything that they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", type=Path, help="the results file of bench_region_attention.py")
    parser.add_argument("--run", type=Path, help="the output of: art train configs/motion.yaml")
    parser.add_argument("--compare", type=Path, help="the output of: art compare configs/motion.yaml")
    parser.add_argument("--more", type=Path, help="evaluations on further clips: DIR/<kind>-seed<n>/evaluation.json")
    parser.add_argument("--linking", type=Path, help="the output of art compare --over model.linking=index,optimal")
    parser.add_argument("--without-residual", type=Path, help="the same with model.response_residual=false")
    parser.add_argument("--ablation", type=Path, help="the output of art ablate as in docs/ablations.md")
    parser.add_argument("--ablation-seeds", type=Path, help="the same with --only components and three seeds")
    arguments = parser.parse_args()
    if not any(vars(arguments).values()):
        parser.error("no input is given, expected at least one")
    PICTURES.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    if arguments.attention:
        draw_attention(json.loads(arguments.attention.read_text()), PICTURES / "readme-attention.png")
    if arguments.run:
        draw_run(arguments.run)
    if arguments.compare:
        copy_comparison(arguments.compare, picture="compare", result="motion-compare")
    if arguments.more:
        further = json.dumps(further_clips(arguments.more), indent=1)
        (RESULTS / "motion-more-clips.json").write_text(further + "\n")
    if arguments.linking:
        copy_comparison(arguments.linking, picture="linking", result="linking-compare")
    if arguments.without_residual:
        copy_comparison(arguments.without_residual, result="linking-without-residual")
    if arguments.ablation:
        copy_ablation(arguments.ablation, "ablation")
    if arguments.ablation_seeds:
        copy_ablation(arguments.ablation_seeds, "ablation-seeds")


def draw_attention(results: dict[str, Any], path: Path) -> None:
    """Draw the speedup of each provider over nn.MultiheadAttention, forward and backward, labeled with milliseconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {"reference": "folded"}  # the name in results files before 2026-11-29
    times = {
        (record["shape"], names.get(record["provider"], record["provider"])): record["median_ms"]
        for record in results["records"]
        if record["pass"] == "both"
    }
    figure = Figure(figsize=(8.2, 4.1), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.2
    for column, (provider, (label, color)) in enumerate(PROVIDERS.items()):
        rows = [row + (column - 1.5) * height for row in range(len(SHAPES))]
        values = [times[shape, "nn.MultiheadAttention"] / times[shape, provider] for shape in SHAPES]
        axes.barh(rows, values, height=0.9 * height, color=color, label=label)
        for row, value, shape in zip(rows, values, SHAPES, strict=True):
            text = f"{value:.1f}×  ({times[shape, provider]:,.0f} ms)"
            axes.text(value + 0.2, row, text, va="center", fontsize=7, color="#444b58")
    axes.set_yticks(range(len(SHAPES)), list(SHAPES.values()), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(right=1.12 * axes.get_xlim()[1])
    machine = f"{results['machine']['threads']} threads of an {results['machine']['device']}"
    axes.set_xlabel(f"speedup over nn.MultiheadAttention, forward and backward, float32; {machine}", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path)


def copy_ablation(directory: Path, name: str) -> None:
    """Copy the figure and the numbers of an ablation, and write its tables between the marks of docs/ablations.md."""
    shutil.copy(directory / "ablate.png", PICTURES / f"{name}.png")
    ablation = _without_paths(json.loads((directory / "ablate.json").read_text()))
    (RESULTS / f"motion-{name}.json").write_text(json.dumps(ablation, indent=1) + "\n")
    page, begin, end = DOCS / "ablations.md", f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{to_markdown(ablation)}\n{end}{after}")


def copy_comparison(directory: Path, *, result: str, picture: str | None = None) -> None:
    """Copy the table and the numbers of a comparison, and the figure if `picture` names it."""
    if picture is not None:
        shutil.copy(directory / "compare.png", PICTURES / f"{picture}.png")
    shutil.copy(directory / "compare.md", RESULTS / f"{result}.md")
    comparison = _without_paths(json.loads((directory / "compare.json").read_text()))
    (RESULTS / f"{result}.json").write_text(json.dumps(comparison, indent=1) + "\n")


def _without_paths(result: dict[str, Any]) -> dict[str, Any]:
    """Remove the paths of the machine that produced a result."""
    config = result["config"]
    for item in (config, *result["runs"]):
        del item["output"]
    del config["data"]["root"]
    if config["model"]["pretrained"] is not None:
        config["model"]["pretrained"] = Path(config["model"]["pretrained"]).name
    return result


def further_clips(directory: Path) -> dict[str, Any]:
    """Return top-1 in % of each kind by seed, and the lead of ART in points: by seed, mean and standard deviation."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(directory.glob("*/evaluation.json"))}
    top1 = {
        kind: [100 * item["top1"] for name, item in found.items() if name.startswith(f"{kind}-seed")]
        for kind in ("backbone", "art")
    }
    leads = [art - backbone for backbone, art in zip(top1["backbone"], top1["art"], strict=True)]
    first = next(iter(found.values()))
    return {
        "clips": first["clips"],
        "provenance": first["provenance"],
        "top1": top1,
        "lead": {"by_seed": leads, "mean": statistics.mean(leads), "std": statistics.stdev(leads)},
    }


def draw_run(run: Path) -> None:
    """Draw tracklets of one correct and one wrong clip and the confusion matrix, and copy the evaluation."""
    config = load_config(run / "config.yaml")
    clips = open_dataset(config.data.name, config.data.root, config.data.test_split)
    checkpoint = run / "checkpoints" / "last"
    evaluation = evaluate_checkpoint(checkpoint)
    model = load_model(checkpoint)
    samples = collect_samples(model, clips, evaluation, right=6, wrong=1, limb=defining_limb(clips, model))
    with_limb = [sample for sample in samples if sample.joints is not None]
    draw_tracklets(with_limb[0], clips, PICTURES / "tracklets.png")
    draw_tracklets(samples[-1], clips, PICTURES / "tracklets-wrong.png")
    figure = confusion_figure(evaluation.confusion, clips.class_names)
    (PICTURES / "confusion.png").write_bytes(png_bytes(figure))
    shutil.copy(run / "evaluation.json", RESULTS / "motion.json")


def draw_tracklets(sample: SampleClip, clips: ClipSet, path: Path) -> None:
    """Draw the tracklets of one clip; the limb that defines its class is marked if there is one."""
    assert sample.maps is not None and sample.saliency is not None and sample.selected is not None
    predicted = clips.class_names[int(sample.probabilities.argmax())]
    figure = tracklet_sheet(
        sample.frames,
        sample.maps,
        sample.saliency,
        [clips.class_names[int(i)] for i in sample.selected],
        title=f"{clips.class_names[sample.label]} — predicted: {predicted}",
        limb=sample.joints,
    )
    path.write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
