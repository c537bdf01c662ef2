"""The command line. torch and what needs it are imported by the commands, so that help comes at once."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from art.commands import (
    run_ablate,
    run_bank,
    run_compare,
    run_evaluate,
    run_explain,
    run_export,
    run_predict,
    run_prepare,
    run_profile,
    run_score,
    run_serve,
    run_shards,
    run_train,
)
from art.extras import missing_extra_message

#: The data sets that come with this package, as art.data.datasets.base knows them: help must not import that.
DATA_SETS = (
    "motion", "finegym99", "finegym288", "finegym99_v1.0", "finegym288_v1.0", "diving48", "ntu60_xsub", "ntu60_xview",
    "ntu120_xsub", "ntu120_xset", "kinetics400", "kinetics600", "something_v1", "something_v2", "folder", "csv", "list",
)  # fmt: skip
#: As in art.experiments.ablate, for the same reason.
ABLATIONS = ("components", "mtc", "bank", "tracklets", "margin")
_OVERRIDE_HELP = "dotted.key=value, over the configuration: optim.lr=0.02 model.num_tracklets=3"
_EXITS = """exit codes: 0 done; 1 predict: a clip could not be read, prepare: clips are missing or broken;
2 wrong usage, configuration, data or files;
130 or 143 stopped by Ctrl-C or SIGTERM (a training has saved its state: continue with --resume)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process.

    0: done. 1: ``predict`` could not read a clip, ``prepare`` found clips missing or broken. 2: an error in usage,
    configuration, data or files, told in one line ("--traceback" shows where). 128 + the signal's number (130, 143):
    interrupted.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes "train CONFIG --resume key=value" apart only with help: what follows an option is left over.
    if any(item.startswith("-") or "=" not in item or not hasattr(options, "overrides") for item in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("art: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        code = _exit_code(error)
        if code is None or options.traceback:
            traceback.print_exc()
        if code is not None and _prints_errors(error):
            message = missing_extra_message(error, f"art {options.command}") or error
            print(f"art: {'error: ' if code == 2 else ''}{message}", file=sys.stderr)
        return code or 1


def _prints_errors(error: Exception) -> bool:
    """Return whether this process prints the error. Only rank 0 of a training reports an interruption."""
    if not _is_instance(error, ("art.train.runtime", "Interrupted")):
        return True
    from art.train.distributed import is_main_process

    return is_main_process()


# Errors in the user's data or configuration, as (module, name). Only a loaded module can have raised one: comparing by
# name loads neither torch nor modules that need an extra.
_USER_ERRORS = (
    ("art.data.decoding.video", "VideoError"),
    ("art.data.loading.dataset", "DataError"),
    ("art.experiments.runs", "RunsFailed"),
    ("art.train.distributed", "OtherRankError"),
    ("art.train.loop", "NonFiniteLoss"),
)


def _is_instance(error: Exception, *types: tuple[str, str]) -> bool:
    return any(isinstance(error, getattr(sys.modules.get(module), name, ())) for module, name in types)


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an interruption or a user error, None for any other exception."""
    if _is_instance(error, ("art.train.runtime", "Interrupted")):
        return 128 + int(getattr(error, "signal_number", 0))
    return 2 if isinstance(error, (ValueError, OSError, ImportError)) or _is_instance(error, *_USER_ERRORS) else None


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="art",
        description="Action-Region Tracking for fine-grained video action recognition.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands")

    _add_prepare(commands)
    _add_shards(commands)

    train = _command(commands, "train", run_train, "train a model", "art train configs/motion.yaml optim.epochs=20")
    train.description = (
        "Train a model. What is reported at the end is the last checkpoint on the test split: nothing is chosen on it. "
        "checkpoints/best is for data with a validation split (data.validation_split). On several devices or machines: "
        "torchrun --nproc-per-node N -m art train CONFIG."
    )
    train.add_argument("config", type=Path, help="a YAML file, such as configs/motion.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDE_HELP)
    train.add_argument("--resume", action="store_true", help="continue the run in the output folder where it was saved")
    train.add_argument(
        "--auto-resume", action="store_true",
        help="continue the run in the output folder if one was begun, else begin it: for launchers and schedulers that "
        "start the same command again",
    )  # fmt: skip
    train.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")

    example = "art evaluate --checkpoint runs/motion/checkpoints/last --report runs/motion/test"
    evaluate = _command(commands, "evaluate", run_evaluate, "measure a checkpoint on a split", example)
    evaluate.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    evaluate.add_argument(
        "--report", type=Path, metavar="DIR", help="where to write evaluation.json, predictions.npz and report.html"
    )
    evaluate.add_argument("--split", help="the split to measure on (default: the test split of the configuration)")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.*, device, precision or optim.batch_size"
    )

    example = "art score runs/a/predictions.npz runs/b/predictions.npz --report runs/both"
    score = _command(commands, "score", run_score, "measure saved predictions again, without model or clips", example)
    score.description = (
        "Print the table that art evaluate printed, from the predictions.npz that it or art train wrote. Several files "
        "are an ensemble: their probabilities are averaged, where they are of the same clips."
    )
    score.add_argument("predictions", nargs="+", type=Path, metavar="NPZ", help="a predictions.npz")
    score.add_argument(
        "--report", type=Path, metavar="DIR", help="where to write evaluation.json, predictions.npz and report.html"
    )

    _add_predict(commands)
    _add_explain(commands)
    _add_serve(commands)

    _add_export(commands)

    example = "art compare configs/motion.yaml --seeds 3 --over model.linking=index,optimal"
    compare = _command(commands, "compare", run_compare, "train with several seeds each way, and compare", example)
    compare.description = (
        "Train one model for each value of a configuration key and each seed, and compare them in one table. Without "
        "--over: the backbone alone, and ART on it. Finished runs are not repeated, a stopped one is continued."
    )
    compare.add_argument("config", type=Path, help="a YAML file, such as configs/motion.yaml")
    compare.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDE_HELP)
    compare.add_argument("--seeds", type=int, default=3, help="runs of each value (default 3)")
    compare.add_argument(
        "--over", metavar="KEY=VALUE,VALUE", default="kind=backbone,art",
        help="what is compared, the first value being the one to compare with (default kind=backbone,art)",
    )  # fmt: skip
    compare.add_argument("--epochs", type=int, help="short for optim.epochs=N")

    _add_ablate(commands)

    example = "art profile configs/motion.yaml model.enhancement_layers=4 --count"
    profile = _command(commands, "profile", run_profile, "count and measure a model stage by stage", example)
    profile.description = (
        "Parameters, operations (multiply-adds) and activations of each stage of the model, counted, and its time and "
        "memory on this device. Needs no data and no checkpoint. Writes profile.json and profile.png."
    )
    profile.add_argument("config", type=Path, help="a YAML file, such as configs/motion.yaml")
    profile.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDE_HELP)
    profile.add_argument("--clips", type=int, default=1, help="clips in a pass (default 1)")
    profile.add_argument("--classes", type=int, default=100, help="number of classes (default 100)")
    profile.add_argument("--repetitions", type=int, default=5, help="of each pass that is timed (default 5)")
    profile.add_argument("--count", action="store_true", help="count only: seconds for any size")
    profile.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: profile/ in the run folder)")
    return parser


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = (
        "art prepare motion --root data/motion\n  art prepare diving48 --root data/diving48\n"
        "  art prepare finegym99 --root data/finegym --cut --to data/finegym-320"
    )
    prepare = _command(commands, "prepare", run_prepare, "make, check or re-encode a data set", example)
    prepare.description = (
        "motion: render the data set. Any other: look for its annotation files and every clip's video, say what is "
        "missing or broken, and, with --to, write the videos again in another folder, small and with a keyframe every "
        "few frames. Originals are only read. The same command goes on where it was stopped."
    )
    prepare.add_argument("name", metavar="NAME", help="the data set: " + ", ".join(DATA_SETS))
    prepare.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="the folder that holds it; motion: to put it into"
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    check = prepare.add_argument_group("check")
    check.add_argument("--splits", nargs="+", metavar="SPLIT", help="which splits (default: all)")
    check.add_argument(
        "--check", choices=("exist", "open", "decode"),
        help="how closely: look for files, open each and list its frames, or decode all of them (default open; with "
        "--to exist, as every original is decoded then)",
    )  # fmt: skip
    check.add_argument(
        "--max-failed-fraction", type=float, metavar="FRACTION",
        help="exit code 1 if a split has a larger fraction of missing and broken clips, 0 to 1 (default 0)",
    )  # fmt: skip
    check.add_argument(  # name in earlier versions
        "--max-bad-share", dest="max_failed_fraction", type=float, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    check.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where prepare.json goes, which lists everything (default: the folder of --to, else runs/prepare-NAME)",
    )  # fmt: skip
    again = prepare.add_argument_group("re-encode")
    again.add_argument("--to", type=Path, metavar="DIR", help="write the videos again in this folder, as MP4 (H.264)")
    again.add_argument("--cut", action="store_true", default=None, help="FineGym: a file for each sub-action")
    again.add_argument("--short-side", type=int, metavar="N", help="pixels; smaller ones stay (default 320)")
    again.add_argument("--keyframe-every", type=int, metavar="N", help="frames (default 12)")
    again.add_argument("--crf", type=int, metavar="N", help="0 no loss to 51 smallest (default 23)")
    motion = prepare.add_argument_group("motion")
    motion.add_argument("--seed", type=int, metavar="N", help="of views, colours and phases (default 0)")
    motion.add_argument("--size", type=int, metavar="N", help="height and width in pixels (default 112)")
    motion.add_argument("--frames", type=int, metavar="N", help="frames a clip (default 24)")
    motion.add_argument("--fps", type=int, metavar="N", help="frames a second (default 12)")
    motion.add_argument("--train-per-class", type=int, metavar="N", help="training clips a class (default 40)")
    motion.add_argument("--test-per-class", type=int, metavar="N", help="test clips a class (default 16)")
    motion.add_argument(
        "--force", action="store_true", default=None, help="make it again where it was made with other settings"
    )


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = (
        "art predict clip.mp4 --checkpoint runs/motion/checkpoints/last --top-k 3\n"
        "  art predict clips.csv --checkpoint runs/motion --out predictions --devices cuda:0,cuda:1"
    )
    predict = _command(commands, "predict", run_predict, "name the action in video files", example)
    predict.description = (
        "Name the action in video files, and print it; or, for many, write it to Parquet files on several devices. "
        "The same command goes on where it was stopped."
    )
    predict.add_argument(
        "clips", nargs="+", type=Path, metavar="CLIP",
        help="a video file; a folder of them, at any depth; a .csv table with a column path; a .txt list of paths; "
        "or shards: a .tar, or the .json index of a split",
    )  # fmt: skip
    predict.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    predict.add_argument("--top-k", type=int, default=5, help="classes to name (default 5)")
    predict.add_argument("--views", type=int, default=1, help="views of a clip to average over (default 1)")
    predict.add_argument("--crops", type=int, default=1, help="crops of each view, 1 or 3 (default 1)")
    predict.add_argument("--batch-size", type=int, default=8, metavar="N", help="views at once (default 8)")
    predict.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode, for each device")
    predict.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16 (default fp32)")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default auto)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    many = predict.add_argument_group("to Parquet")
    many.add_argument("--out", type=Path, metavar="DIR", help="write there, and print no answers")
    many.add_argument("--all-probabilities", action="store_true", help="write those of all classes, too")
    many.add_argument("--part-clips", type=int, default=512, metavar="N", help="clips a file (default 512)")
    _add_devices(many, "that of --device")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = (
        "art export --checkpoint runs/motion --format onnx --out motion.onnx\n"
        "  art export --checkpoint DIR --format torch --out motion.pt2 --outputs logits,maps --clips a.mp4 b.mp4"
    )
    export = _command(commands, "export", run_export, "write a model as a file that needs no ART to run", example)
    export.description = (
        "Write a checkpoint as a torch.export program or as ONNX with standard operators, for any number of clips at "
        "once. The file takes frames as uint8 RGB and holds class names, number and size of frames and their sampling. "
        "Before it takes its name, what it says of real clips is compared with the model."
    )
    export.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    export.add_argument("--format", required=True, help="torch (a .pt2 file) or onnx (needs the extra [onnx])")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file, .pt2 or .onnx")
    export.add_argument(
        "--outputs",
        default="logits",
        metavar="NAME,NAME",
        help="logits, and after it class_token, maps (default logits)",
    )
    export.add_argument(
        "--clips", nargs="+", type=Path, default=[], metavar="CLIP",
        help="what to check it with, as art predict takes clips (default: some of the test split of the run)",
    )  # fmt: skip


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "art explain clip.mp4 --checkpoint runs/motion --out runs/explain"
    explain = _command(commands, "explain", run_explain, "show what a model looks at in a video", example)
    explain.description = (
        "Draw a video with each tracklet's response, centre, box and path, the text that asks for it, its saliency and "
        "class probabilities over time; beside it Grad-CAM and attention roll-out of the backbone. Writes film.mp4, "
        "film.gif, sheet.png and explanation.json."
    )
    explain.add_argument("clip", type=Path, metavar="CLIP", help="a video file")
    explain.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    explain.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/explain-CLIP)")
    explain.add_argument("--top-k", type=int, default=5, help="classes in the chart (default 5)")
    _add_timeline_points(explain)
    explain.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default auto)")

    example = "art bank --checkpoint runs/motion --out runs/bank"
    bank = _command(commands, "bank", run_bank, "show the texts of the classes before and after training", example)
    bank.description = (
        "Draw the semantics bank of a checkpoint before and after fine-tuning: its texts as points (t-SNE and UMAP, of "
        "the extra 'embed'), the similarity of the classes, and which prompt wins for each. Writes embedding.png, "
        "similarity.png, prompts.png and bank.json."
    )
    bank.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    bank.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/bank-CHECKPOINT)")


def _add_timeline_points(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--timeline-points", type=int, default=24, metavar="N",
        help="clip prefixes to classify for the chart over time, one forward pass each; 0 omits the chart (default 24)",
    )  # fmt: skip
    # Deprecated alias.
    command.add_argument(
        "--moments", dest="timeline_points", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _command(
        commands, "serve", run_serve, "try a model on a web page", "art serve --checkpoint runs/motion --port 8800"
    )
    serve.description = (
        "A web page on this machine: bring a clip or use the camera, see the classes and what each tracklet follows. "
        "Other machines reach it only with --host and a token. Clips are removed once they have been looked at."
    )
    serve.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1, this machine only)")
    serve.add_argument("--port", type=int, default=8800, metavar="N", help="0 is a free one (default 8800)")
    serve.add_argument(
        "--token",
        help="what everybody must give, at least 16 characters; other users see a command line, and not the variable "
        "ART_SERVE_TOKEN (default: none on this machine only, else one is made and printed)",
    )
    serve.add_argument("--top-k", type=int, default=5, metavar="N", help="classes to name (default 5)")
    _add_timeline_points(serve)
    serve.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default auto)")
    limits = serve.add_argument_group("limits")
    limits.add_argument("--max-megabytes", type=float, default=64, metavar="N", help="of a file (default 64)")
    limits.add_argument("--max-seconds", type=float, default=30, metavar="N", help="of a clip (default 30)")
    limits.add_argument("--max-frames", type=int, default=1800, metavar="N", help="of a clip (default 1800)")
    limits.add_argument("--max-megapixels", type=float, default=9, metavar="N", help="of a frame (default 9)")
    limits.add_argument("--max-waiting", type=int, default=8, metavar="N", help="clips at once (default 8)")
    limits.add_argument(
        "--timeout", type=float, default=300, metavar="S", help="seconds after which a clip is given up (default 300)"
    )
    limits.add_argument(
        "--keep-minutes", type=float, default=10, metavar="N", help="for which an answer is kept (default 10)"
    )


def _add_ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "art ablate configs/motion.yaml model.enhancement_layers=1 --seeds 3 --dry-run"
    ablate = _command(commands, "ablate", run_ablate, "train the paper's ablations, and compare", example)
    ablate.description = (
        "Train the model with parts of the method left out, with other values of K and λ, and with several seeds, and "
        "compare row by row. The configuration is the whole method. Finished runs are not repeated, a stopped one is "
        "continued, and what two tables have in common is trained once. Writes ablate.json, ablate.md and ablate.png."
    )
    ablate.add_argument("config", type=Path, help="a YAML file, such as configs/motion.yaml")
    ablate.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDE_HELP)
    ablate.add_argument("--seeds", type=int, default=3, help="runs of each row (default 3)")
    ablate.add_argument("--only", metavar="TABLE,TABLE", help=f"some of {','.join(ABLATIONS)} (default: all)")
    _add_devices(ablate, "the configuration's; auto is all CUDA devices there are, else the CPU")
    ablate.add_argument("--dry-run", action="store_true", help="list the runs and how long they may take, and stop")


def _add_devices(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--devices", metavar="DEVICE,DEVICE", help=f"where to work at once (default: {default})")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on each device (default 1)")


def _add_shards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    example = "art shards csv --root data/mine --to data/mine-shards --splits train test"
    shards = _command(commands, "shards", run_shards, "write a data set into tar shards", example)
    shards.description = (
        "Write the clips of a data set, whatever it is, into tar files of some tens of megabytes each, for storage "
        "that is far away. Train from them with data.name=shards data.root=DIR. Originals are only read."
    )
    shards.add_argument("name", metavar="NAME", help="the data set, as data.name has it")
    shards.add_argument("--root", type=Path, required=True, metavar="DIR", help="the folder that holds it")
    shards.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to write into")
    shards.add_argument("--splits", nargs="+", metavar="SPLIT", help="which splits (default: all)")
    shards.add_argument("--shard-mib", type=float, default=32.0, metavar="N", help="MiB of a shard (default 32)")
    shards.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of the clips (default 0)")
    shards.add_argument(
        "--url", default="", metavar="URL",
        help="where the shards will be read, if not in DIR: https://host/set, or 'pipe:aws s3 cp s3://bucket/{} -'",
    )  # fmt: skip


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from art import __version__

        print(f"art {__version__}")
        parser.exit()


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
