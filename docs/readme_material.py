"""Draw the README's pictures and copy the numbers that it quotes, from the folders of a run and of comparisons.

    python docs/readme_material.py --run runs/motion --compare runs/compare --more runs/more
    python docs/readme_material.py --linking runs/linking --without-residual runs/linking-without-residual
    python docs/readme_material.py --ablation runs/ablate --ablation-seeds runs/ablate-seeds

Writes ``docs/pictures/*.png`` and ``docs/results/motion*.json`` and ``linking*.json`` (and the tables of comparisons as
Markdown, those of ablations into ``docs/ablations.md``), of the folders that are given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from art import load_model
from art.data.datasets.clips import ClipSet
from art.data.datasets.registry import open_dataset
from art.eval.evaluate import evaluate_checkpoint
from art.eval.report import SampleClip, collect_samples, confusion_figure, tracklet_sheet
from art.eval.report.style import png_bytes
from art.eval.reporting import defining_limb
from art.experiments.ablation_markdown import as_markdown
from art.train.config import load_config

DOCS = Path(__file__).parent


def main() -> None:
    """Read the arguments and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the output of: art train configs/motion.yaml")
    parser.add_argument("--compare", type=Path, help="the output of: art compare configs/motion.yaml")
    parser.add_argument(
        "--more", type=Path,
        help="reports of the comparison's checkpoints on further clips: DIR/<kind>-seed<n>/evaluation.json",
    )  # fmt: skip
    parser.add_argument("--linking", type=Path, help="the same --over model.linking=index,optimal")
    parser.add_argument("--without-residual", type=Path, help="that with model.response_residual=false")
    parser.add_argument("--ablation", type=Path, help="the output of art ablate, as docs/ablations.md calls it")
    parser.add_argument("--ablation-seeds", type=Path, help="the same --only components with three seeds")
    arguments = parser.parse_args()
    if not any(vars(arguments).values()):
        parser.error("no folder is given, expected at least one")
    for name in ("pictures", "results"):
        (DOCS / name).mkdir(exist_ok=True)
    if arguments.run:
        draw_run(arguments.run)
    if arguments.compare:
        copy_comparison(arguments.compare, picture="compare", result="motion-compare")
    if arguments.more:
        further = json.dumps(further_clips(arguments.more), indent=1)
        (DOCS / "results" / "motion-more-clips.json").write_text(further + "\n")
    if arguments.linking:
        copy_comparison(arguments.linking, picture="linking", result="linking-compare")
    if arguments.without_residual:
        copy_comparison(arguments.without_residual, result="linking-without-residual")
    if arguments.ablation:
        copy_ablation(arguments.ablation, "ablation")
    if arguments.ablation_seeds:
        copy_ablation(arguments.ablation_seeds, "ablation-seeds")


def copy_ablation(folder: Path, name: str) -> None:
    """The picture and the numbers of ablations, and their tables into the page about them, between its marks."""
    shutil.copy(folder / "ablate.png", DOCS / "pictures" / f"{name}.png")
    ablation = _without_places(json.loads((folder / "ablate.json").read_text()))
    (DOCS / "results" / f"motion-{name}.json").write_text(json.dumps(ablation, indent=1) + "\n")
    page, begin, end = DOCS / "ablations.md", f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{as_markdown(ablation)}\n{end}{after}")


def copy_comparison(folder: Path, *, result: str, picture: str | None = None) -> None:
    """The table and the numbers of a comparison, and the picture where it is wanted, under these names."""
    if picture is not None:
        shutil.copy(folder / "compare.png", DOCS / "pictures" / f"{picture}.png")
    shutil.copy(folder / "compare.md", DOCS / "results" / f"{result}.md")
    comparison = _without_places(json.loads((folder / "compare.json").read_text()))
    (DOCS / "results" / f"{result}.json").write_text(json.dumps(comparison, indent=1) + "\n")


def _without_places(result: dict[str, Any]) -> dict[str, Any]:
    """Where the folders lay on that machine says nothing to a reader."""
    config = result["config"]
    for place in (config, *result["runs"]):
        del place["output"]
    del config["data"]["root"]
    if config["model"]["pretrained"] is not None:
        config["model"]["pretrained"] = Path(config["model"]["pretrained"]).name
    return result


def further_clips(folder: Path) -> dict[str, Any]:
    """Top-1, %, of each kind by seed, and ART's lead: mean and standard deviation over the seeds, points."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/evaluation.json"))}
    top1 = {
        kind: [100 * told["top1"] for name, told in found.items() if name.startswith(f"{kind}-seed")]
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
    """Tracklets of one clip that was recognised and of one that was not, the confusion matrix, the evaluation."""
    config = load_config(run / "config.yaml")
    clips = open_dataset(config.data.name, config.data.root, config.data.test_split)
    checkpoint = run / "checkpoints" / "last"
    evaluation = evaluate_checkpoint(checkpoint)
    model = load_model(checkpoint)
    samples = collect_samples(model, clips, evaluation, right=6, wrong=1, limb=defining_limb(clips, model))
    with_limb = [sample for sample in samples if sample.joints is not None]
    draw_tracklets(with_limb[0], clips, DOCS / "pictures" / "tracklets.png")
    draw_tracklets(samples[-1], clips, DOCS / "pictures" / "tracklets-wrong.png")
    figure = confusion_figure(evaluation.confusion, clips.class_names)
    (DOCS / "pictures" / "confusion.png").write_bytes(png_bytes(figure))
    shutil.copy(run / "evaluation.json", DOCS / "results" / "motion.json")


def draw_tracklets(sample: SampleClip, clips: ClipSet, path: Path) -> None:
    """The sheet of one clip; the limb that defines its class is marked where there is one."""
    assert sample.maps is not None and sample.saliency is not None and sample.selected is not None
    answer = clips.class_names[int(sample.probabilities.argmax())]
    figure = tracklet_sheet(
        sample.frames,
        sample.maps,
        sample.saliency,
        [clips.class_names[int(i)] for i in sample.selected],
        title=f"{clips.class_names[sample.label]} — predicted: {answer}",
        limb=sample.joints,
    )
    path.write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
