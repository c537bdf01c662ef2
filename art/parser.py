"""The arguments of every command. Building them imports neither torch nor other large libraries."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path

from art import commands

#: Built-in datasets, as in art.data.datasets.base, which would import torch.
DATASETS = (
    "motion", "finegym99", "finegym288", "finegym99_v1.0", "finegym288_v1.0", "diving48", "ntu60_xsub", "ntu60_xview",
    "ntu120_xsub", "ntu120_xset", "kinetics400", "kinetics600", "something_v1", "something_v2", "folder", "csv", "list",
)  # fmt: skip
#: Tables of art.experiments.ablate, for the same reason.
ABLATIONS = ("components", "mtc", "bank", "tracklets", "margin")
_CHECKPOINT_HELP = "directory of a checkpoint or a run"
_EXIT_CODES = """exit codes:
  0         success
  1         predict, shards, extract: a clip could not be read; prepare: clips are missing or broken; the weights of a
            model, or its output, are not finite
  2         invalid usage, configuration, data or files
  130, 143  stopped by Ctrl-C or SIGTERM (training saves its state; continue with --resume)"""

Subparsers = argparse._SubParsersAction


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="art",
        description="Action-Region Tracking for fine-grained video action recognition.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of errors")
    subparsers = parser.add_subparsers(dest="command", metavar="command", title="commands")
    for add_command in (
        _add_prepare, _add_shards, _add_train, _add_evaluate, _add_score, _add_predict, _add_explain, _add_bank,
        _add_serve, _add_export, _add_extract, _add_features, _add_probe, _add_fit, _add_compare, _add_ablate,
        _add_profile,
    ):  # fmt: skip
        add_command(subparsers)
    return parser


def _command(
    subparsers: Subparsers[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *examples: str,
    description: str = "",
) -> argparse.ArgumentParser:
    example_lines = "\n".join(f"  art {name} {example}" for example in examples)
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description or f"{summary[0].upper()}{summary[1:]}.", 100),
        epilog=f"example{'s' * (len(examples) > 1)}:\n{example_lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, such as configs/motion.yaml")
    _add_overrides(parser, "overrides of the configuration, such as optim.lr=0.02 model.num_tracklets=3")


def _add_overrides(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help)


def _add_directory(parser: argparse.ArgumentParser, flag: str, help: str) -> None:
    parser.add_argument(flag, type=Path, required=True, metavar="DIR", help=help)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write evaluation.json, predictions.npz and report.html to this directory",
    )  # fmt: skip


def _add_out(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"output directory (default: {default})")


def _add_number(parser: argparse._ActionsContainer, flag: str, default: float, help: str) -> None:
    help = f"{help} (default: {default:g})"
    parser.add_argument(flag, type=type(default), default=default, metavar="N", help=help)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: auto)")


def _add_devices(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--devices", metavar="DEVICE,DEVICE", help=f"devices to use in parallel (default: {default})")
    _add_number(parser, "--jobs", 1, "processes per device")


def _add_timeline_points(parser: argparse.ArgumentParser) -> None:
    text = "clip prefixes to classify for the chart over time, one forward pass each; 0 omits the chart"
    _add_number(parser, "--timeline-points", 24, text)
    _add_deprecated(parser, "--moments", "timeline_points", int)


def _add_deprecated(parser: argparse._ActionsContainer, flag: str, dest: str, type: Callable[[str], object]) -> None:
    parser.add_argument(flag, dest=dest, type=type, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_prepare(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    prepare = _command(
        subparsers, "prepare", commands.run_prepare, "create, check or re-encode a dataset",
        "motion --root data/motion",
        "diving48 --root data/diving48",
        "finegym99 --root data/finegym --cut --to data/finegym-320",
        description="motion: render the dataset. Other datasets: check the annotation files and the video of every "
        "clip, report what is missing or broken and, with --to, write smaller videos with frequent keyframes to "
        "another directory. Original files are never modified. Run the command again to resume it after an "
        "interruption.",
    )  # fmt: skip
    prepare.add_argument("name", metavar="NAME", help="the dataset: " + ", ".join(DATASETS))
    _add_directory(prepare, "--root", "directory of the dataset; for motion, where to create it")
    prepare.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one per core)")
    check = prepare.add_argument_group("check")
    check.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to check (default: all)")
    check.add_argument(
        "--check", choices=("exist", "open", "decode"),
        help="check that files exist, open each and read its frame index, or decode every frame (default: open; with "
        "--to exist, because every original is decoded anyway)",
    )  # fmt: skip
    check.add_argument(
        "--max-failed-fraction", type=float, metavar="FRACTION",
        help="exit with code 1 if the fraction of missing and broken clips in a split is larger, 0 to 1 (default: 0)",
    )  # fmt: skip
    _add_deprecated(check, "--max-bad-share", "max_failed_fraction", float)
    check.add_argument(
        "--out", type=Path, metavar="DIR",
        help="directory of prepare.json, which lists every problem (default: that of --to, or runs/prepare-NAME)",
    )  # fmt: skip
    encode = prepare.add_argument_group("re-encode")
    encode.add_argument("--to", type=Path, metavar="DIR", help="write MP4 (H.264) videos to this directory")
    encode.add_argument("--cut", action="store_true", default=None, help="FineGym: write one file per sub-action")
    encode.add_argument(
        "--short-side", type=int, metavar="N", help="length in pixels; smaller videos keep their size (default: 320)"
    )
    encode.add_argument("--keyframe-every", type=int, metavar="N", help="keyframe interval in frames (default: 12)")
    encode.add_argument("--crf", type=int, metavar="N", help="quality, 0 (lossless) to 51 (default: 23)")
    motion = prepare.add_argument_group("motion")
    motion.add_argument("--seed", type=int, metavar="N", help="seed of views, colors and phases (default: 0)")
    motion.add_argument("--size", type=int, metavar="N", help="height and width in pixels (default: 112)")
    motion.add_argument("--frames", type=int, metavar="N", help="frames per clip (default: 24)")
    motion.add_argument("--fps", type=int, metavar="N", help="frames per second (default: 12)")
    motion.add_argument("--train-per-class", type=int, metavar="N", help="training clips per class (default: 40)")
    motion.add_argument("--test-per-class", type=int, metavar="N", help="test clips per class (default: 16)")
    motion.add_argument(
        "--force", action="store_true", default=None, help="replace a dataset created with different settings"
    )


def _add_shards(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    shards = _command(
        subparsers, "shards", commands.run_shards, "convert a dataset to tar shards",
        "csv --root data/mine --to data/mine-shards --splits train test",
        description="Write the clips of a dataset to tar files of some tens of megabytes each, for training from "
        "remote storage with data.name=shards data.root=DIR or, after copying DIR there, data.root=URL (s3://, gs://, "
        "hf://, https://). Original files are never modified.",
    )  # fmt: skip
    shards.add_argument("name", metavar="NAME", help="the dataset, as in data.name")
    _add_directory(shards, "--root", "directory of the dataset")
    _add_directory(shards, "--to", "output directory")
    shards.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to convert (default: all)")
    _add_number(shards, "--shard-mib", 32.0, "MiB per shard")
    _add_number(shards, "--seed", 0, "seed of the clip order")
    shards.add_argument(
        "--url", metavar="URL",
        help="where DIR will be copied to; printed with the arguments for training, and not stored in the index",
    )  # fmt: skip


def _add_train(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    train = _command(
        subparsers, "train", commands.run_train, "train a model", "configs/motion.yaml optim.epochs=20",
        description="Train a model and evaluate its last checkpoint on the test split. checkpoints/best is selected on "
        "the validation split (data.validation_split); without one it is selected on the test split, so its test "
        "accuracy is biased. On several devices or machines: torchrun --nproc-per-node N -m art train CONFIG.",
    )  # fmt: skip
    _add_config(train)
    train.add_argument("--resume", action="store_true", help="resume the run in the output directory")
    train.add_argument(
        "--auto-resume", action="store_true",
        help="resume the run in the output directory if there is one, otherwise start one: for launchers and "
        "schedulers that repeat the same command",
    )  # fmt: skip
    train.add_argument(
        "--allow-changed-data", action="store_true",
        help="resume even if clips, labels or files of the dataset have changed since the run was started",
    )  # fmt: skip
    train.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")


def _add_evaluate(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    evaluate = _command(
        subparsers, "evaluate", commands.run_evaluate, "evaluate a checkpoint on a split",
        "--checkpoint runs/motion/checkpoints/last --report runs/motion/test",
    )  # fmt: skip
    _add_directory(evaluate, "--checkpoint", _CHECKPOINT_HELP)
    _add_report(evaluate)
    evaluate.add_argument("--split", help="the split (default: the test split of the configuration)")
    _add_overrides(evaluate, "overrides of data.*, device, precision, tf32 or optim.batch_size")


def _add_score(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    score = _command(
        subparsers, "score", commands.run_score, "evaluate saved predictions, without model or clips",
        "runs/a/predictions.npz runs/b/predictions.npz --report runs/both",
        description="Print the table of art evaluate from the predictions.npz that art evaluate or art train wrote. "
        "Several files are an ensemble: their probabilities are averaged. They must contain the same clips.",
    )  # fmt: skip
    text = "a predictions.npz, or the directory of a run or report that contains one"
    score.add_argument("predictions", nargs="+", type=Path, metavar="NPZ", help=text)
    _add_report(score)


def _add_predict(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    predict = _command(
        subparsers, "predict", commands.run_predict, "predict the action in video files",
        "clip.mp4 --checkpoint runs/motion/checkpoints/last --top-k 3",
        "clips.csv --checkpoint runs/motion --out predictions --devices cuda:0,cuda:1",
        description="Predict the action in video files, and print it or write it to Parquet files, which supports "
        "several devices. Run the command again to resume it after an interruption.",
    )  # fmt: skip
    predict.add_argument(
        "clips", nargs="+", metavar="CLIP",
        help="a video file; a directory of video files (recursive); a .csv table with a column path; a .txt list of "
        "paths; or shards: a .tar file, or the .json index of a split, also by URL (s3://, gs://, hf://, https://)",
    )  # fmt: skip
    _add_directory(predict, "--checkpoint", _CHECKPOINT_HELP)
    _add_number(predict, "--top-k", 5, "number of classes to report")
    _add_number(predict, "--views", 1, "views per clip to average")
    _add_number(predict, "--crops", 1, "crops per view, 1 or 3")
    _add_number(predict, "--batch-size", 8, "views per batch")
    _add_number(predict, "--workers", 0, "decoding processes per device")
    predict.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16 (default: fp32)")
    _add_device(predict)
    predict.add_argument("--json", action="store_true", help="print JSON")
    parquet = predict.add_argument_group("Parquet output")
    parquet.add_argument("--out", type=Path, metavar="DIR", help="write Parquet files to this directory; print nothing")
    parquet.add_argument("--all-probabilities", action="store_true", help="also write the probabilities of all classes")
    _add_number(parquet, "--part-clips", 512, "clips per file")
    _add_devices(parquet, "that of --device")


def _add_explain(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    explain = _command(
        subparsers, "explain", commands.run_explain, "show which regions of a video a model uses",
        "clip.mp4 --checkpoint runs/motion --out runs/explain",
        description="Draw the response, center, box and path of each tracklet over a video, the text that queries it, "
        "its saliency and the class probabilities over time, next to Grad-CAM and attention rollout of the backbone. "
        "Writes film.mp4, film.gif, sheet.png and explanation.json.",
    )  # fmt: skip
    explain.add_argument("clip", metavar="CLIP", help="a video file or a directory of frames")
    _add_directory(explain, "--checkpoint", _CHECKPOINT_HELP)
    _add_out(explain, "runs/explain-DIRECTORY-CLIP")
    _add_number(explain, "--top-k", 5, "classes in the chart")
    _add_timeline_points(explain)
    _add_device(explain)


def _add_bank(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    bank = _command(
        subparsers, "bank", commands.run_bank, "show the class texts before and after training",
        "--checkpoint runs/motion --out runs/bank",
        description="Draw the semantics bank of a checkpoint before and after fine-tuning: an embedding of its texts "
        "(t-SNE and UMAP; requires the extra 'embed'), the similarity of the classes, and the prompt selected for "
        "each. Writes embedding.png, similarity.png, prompts.png and bank.json.",
    )  # fmt: skip
    _add_directory(bank, "--checkpoint", _CHECKPOINT_HELP)
    _add_out(bank, "runs/bank-CHECKPOINT")


def _add_serve(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    serve = _command(
        subparsers, "serve", commands.run_serve, "try a model on a web page", "--checkpoint runs/motion --port 8800",
        description="Serve a local web page: upload a clip or use the camera, and see the classes and the tracklets. "
        "Other machines need --host and a token to connect. Clips are deleted after they have been processed.",
    )  # fmt: skip
    _add_directory(serve, "--checkpoint", _CHECKPOINT_HELP)
    serve.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1, this machine only)")
    _add_number(serve, "--port", 8800, "port; 0 selects a free one")
    serve.add_argument("--token", help="required in every request, at least 16 characters; other users can see a "
        "command line, but not the variable ART_SERVE_TOKEN (default: none on this machine only, otherwise one is "
        "generated and printed)")  # fmt: skip
    _add_number(serve, "--top-k", 5, "number of classes to show")
    _add_timeline_points(serve)
    _add_device(serve)
    limits = serve.add_argument_group("limits")
    _add_number(limits, "--max-megabytes", 64.0, "maximum file size in megabytes")
    _add_number(limits, "--max-seconds", 30.0, "maximum clip duration in seconds")
    _add_number(limits, "--max-frames", 1800, "maximum frames per clip")
    _add_number(limits, "--max-megapixels", 9.0, "maximum frame size in megapixels")
    _add_number(limits, "--max-waiting", 8, "maximum number of clips at the same time")
    _add_number(limits, "--timeout", 300.0, "maximum processing time per clip in seconds")
    _add_number(limits, "--keep-minutes", 10.0, "time to keep a result, in minutes")


def _add_export(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    export = _command(
        subparsers, "export", commands.run_export, "export a model to a file that runs without ART",
        "--checkpoint runs/motion --format onnx --out motion.onnx",
        "--checkpoint DIR --format torch --out motion.pt2 --outputs logits,maps --clips a.mp4 b.mp4",
        description="Export a checkpoint as a torch.export program, or as ONNX with standard operators, with a dynamic "
        "batch size. The file takes frames as uint8 RGB, and contains the class names, the number and size of frames, "
        "and their sampling. Its outputs for real clips are compared with those of the model before it is saved.",
    )  # fmt: skip
    _add_directory(export, "--checkpoint", _CHECKPOINT_HELP)
    export.add_argument("--format", required=True, help="torch (a .pt2 file) or onnx (requires the extra 'onnx')")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="output file, .pt2 or .onnx")
    export.add_argument(
        "--outputs", default="logits", metavar="NAME,NAME",
        help="logits, optionally followed by class_token and maps (default: logits)",
    )  # fmt: skip
    export.add_argument(
        "--clips", nargs="+", default=[], metavar="CLIP",
        help="inputs for the comparison, as for art predict (default: clips of the run's test split)",
    )  # fmt: skip


def _add_extract(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    extract = _command(
        subparsers, "extract", commands.run_extract, "write the features of a frozen backbone",
        "configs/motion.yaml --out features model.pretrained=backbone.safetensors",
        "configs/motion.yaml --out features model.backbone=timm_vit --dry-run",
        description="Compute the tokens of a backbone for every clip once, and write them to files of up to 256 MiB, "
        "for art probe. Run the command again to resume it after an interruption.",
    )  # fmt: skip
    _add_config(extract)
    extract.add_argument("--out", type=Path, required=True, metavar="DIR", help="output directory")
    extract.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits (default: the training and test split)")
    extract.add_argument(
        "--layers", nargs="+", type=int, default=[], metavar="N",
        help="further blocks whose tokens are stored, from 0, or negative from the last",
    )  # fmt: skip
    _add_number(extract, "--views", 1, "views per clip: that of evaluation, then augmented ones")
    extract.add_argument("--dtype", default="float16", help="float16, bfloat16 or float32 (default: float16)")
    _add_devices(extract, "auto: all CUDA devices, or the CPU")
    extract.add_argument("--dry-run", action="store_true", help="print sizes and the estimated time, and exit")


def _add_features(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    features = _command(
        subparsers, "features", commands.run_features, "describe features that art extract wrote", "features --verify",
        description="Print where the features come from, their sizes, and statistics of the first file of each split.",
    )  # fmt: skip
    features.add_argument("directory", type=Path, metavar="DIR", help="written by art extract")
    features.add_argument("--verify", action="store_true", help="also compare the checksum of every file")


def _add_probe(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    probe = _command(
        subparsers, "probe", commands.run_probe, "train heads on stored features",
        "features heads=mean,cls,ep,attentive,art,knn --out runs/probe",
        "features heads=ep lrs=0.001,0.003 seeds=5 epochs=30 ep.num_queries=16",
        description="Train several heads with several learning rates and seeds on the features of art extract, all in "
        "one pass over the files. Learning rate and number of epochs are selected on held-out training clips; heads "
        "with the selected settings are then trained on all training clips, and evaluated once on the test split. "
        "Writes probe.json, probe.md and a run directory for each head.",
    )  # fmt: skip
    probe.add_argument("directory", type=Path, metavar="DIR", help="written by art extract")
    keys = "heads, lrs, seeds, epochs, batch_size, weight_decay, holdout, time_position, layers, save, seed, device"
    _add_overrides(probe, f"{keys}, or HEAD.option, such as ep.num_queries=16")
    _add_out(probe, "probe/ in the directory of the features")


def _add_fit(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    fit = _command(
        subparsers, "fit", commands.run_fit, "train a classifier of your own clips on a frozen backbone",
        "my_clips --backbone efficientnet_lite0 --pretrained imagenet",
        "my_clips --backbone vjepa2 --pretrained facebook/vjepa2-vitl-fpc64-256 model.num_frames=16 heads=ep",
        description="Extract the features of clips in class directories, select and train a head, and save a run for "
        "art predict, explain, serve, ... Without a test split, and with at most 50 clips per class, accuracy is "
        "estimated by cross-validation. Writes fit.json, report.html and the files of a run.",
    )  # fmt: skip
    fit.add_argument("directory", type=Path, metavar="DIRECTORY", help="clips in DIRECTORY/CLASS/, or with splits")
    fit.add_argument("--backbone", required=True, metavar="NAME", help="a registered backbone, see docs/backbones.md")
    fit.add_argument("--pretrained", metavar="WEIGHTS", help="file or tag of its weights; the same as model.pretrained")
    fit.add_argument("--folds", type=int, metavar="N", help="folds of the cross-validation (default: 5, or none)")
    _add_overrides(fit, "data.*, model.*, precision, or settings of art probe, such as heads=mean,ep")
    _add_out(fit, "runs/fit-DIRECTORY")


def _add_compare(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    compare = _command(
        subparsers, "compare", commands.run_compare, "train variants with several seeds and compare them",
        "configs/motion.yaml --seeds 3 --over model.linking=index,optimal",
        description="Train one model per value of a configuration key and seed, and compare them in one table. Without "
        "--over: the backbone alone and ART with it. Finished runs are reused, interrupted ones are resumed.",
    )  # fmt: skip
    _add_config(compare)
    _add_number(compare, "--seeds", 3, "runs per value")
    compare.add_argument(
        "--over", metavar="KEY=VALUE,VALUE", default="kind=backbone,art",
        help="the key and its values, the first of which is the baseline (default: kind=backbone,art)",
    )  # fmt: skip
    compare.add_argument("--epochs", type=int, help="the same as optim.epochs=N")


def _add_ablate(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    ablate = _command(
        subparsers, "ablate", commands.run_ablate, "train and compare the paper's ablations",
        "configs/motion.yaml model.enhancement_layers=1 --seeds 3 --dry-run",
        description="Train the model without parts of the method and with other values of K and λ, each with several "
        "seeds, and compare them row by row. The configuration is the complete method. Finished runs are reused, "
        "interrupted ones are resumed, and rows that two tables share are trained once. Writes ablate.json, ablate.md "
        "and ablate.png.",
    )  # fmt: skip
    _add_config(ablate)
    _add_number(ablate, "--seeds", 3, "runs per row")
    ablate.add_argument("--only", metavar="TABLE,TABLE", help=f"some of {','.join(ABLATIONS)} (default: all)")
    _add_devices(ablate, "the configuration's; auto: all CUDA devices, or the CPU")
    ablate.add_argument("--dry-run", action="store_true", help="list the runs and their estimated time, and exit")


def _add_profile(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    profile = _command(
        subparsers, "profile", commands.run_profile, "profile a model stage by stage",
        "configs/motion.yaml model.enhancement_layers=4 --count",
        description="Count the parameters, operations (multiply-adds) and activations of each stage of the model, and "
        "measure its time and memory on this device. Requires neither data nor a checkpoint. Writes profile.json and "
        "profile.png.",
    )  # fmt: skip
    _add_config(profile)
    _add_number(profile, "--clips", 1, "batch size in clips")
    _add_number(profile, "--classes", 100, "number of classes")
    _add_number(profile, "--repetitions", 5, "repetitions per measurement")
    profile.add_argument("--count", action="store_true", help="count only, which takes seconds for any model size")
    _add_out(profile, "profile/ in the run directory")
