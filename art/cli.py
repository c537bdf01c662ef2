"""The command line. torch and what needs it are imported by the commands, so that help comes at once."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

_OVERRIDE_HELP = "dotted.key=value, over the configuration: optim.lr=0.02 model.num_tracklets=3"
_EXITS = """exit codes: 0 done; 1 predict: a clip could not be read; 2 wrong usage, configuration, data or files;
130 or 143 stopped by Ctrl-C or SIGTERM (a training has saved its state: continue with --resume)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process.

    0: done. 1: ``predict`` could not read a clip. 2: an error in usage, configuration, data or files, told in one line
    ("--traceback" shows where). 128 + the signal's number (130, 143): interrupted.
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
        if code is not None:
            print(f"art: {'error: ' if code == 2 else ''}{error}", file=sys.stderr)
        return code or 1


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that the user can mend or asked for; None: a bug, which keeps its traceback."""
    from art.data.dataset import DataError
    from art.data.video import VideoError
    from art.engine.interruption import Interrupted
    from art.engine.train import NonFiniteLoss

    if isinstance(error, Interrupted):
        return 128 + error.signal_number
    expected = (ValueError, OSError, ImportError, DataError, VideoError, NonFiniteLoss)
    return 2 if isinstance(error, expected) else None


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

    prepare = _command(commands, "prepare", _prepare, "make a data set", "art prepare motion --root data/motion")
    prepare.add_argument("name", choices=("motion",), help="the data set: recorded human motion, rendered")
    prepare.add_argument("--root", type=Path, required=True, help="the folder to put it into")
    prepare.add_argument("--seed", type=int, default=0, help="of views, colours and phases (default 0)")
    prepare.add_argument("--size", type=int, default=112, help="height and width in pixels (default 112)")
    prepare.add_argument("--frames", type=int, default=24, help="frames a clip (default 24)")
    prepare.add_argument("--fps", type=int, default=12, help="frames a second (default 12)")
    prepare.add_argument("--train-per-class", type=int, default=40, help="training clips a class (default 40)")
    prepare.add_argument("--test-per-class", type=int, default=16, help="test clips a class (default 16)")
    prepare.add_argument("--force", action="store_true", help="make it again where it was made with other settings")
    prepare.add_argument("--workers", type=int, default=None, help="processes that render (default: all cores)")

    train = _command(commands, "train", _train, "train a model", "art train configs/motion.yaml optim.epochs=20")
    train.description = (
        "Train a model. What is reported at the end is the last checkpoint on the test split: nothing is chosen on it. "
        "checkpoints/best is for data with a validation split (data.validation_split)."
    )
    train.add_argument("config", type=Path, help="a YAML file, such as configs/motion.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDE_HELP)
    train.add_argument("--resume", action="store_true", help="continue the run in the output folder where it was saved")
    train.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")

    example = "art evaluate --checkpoint runs/motion/checkpoints/last --report runs/motion/test"
    evaluate = _command(commands, "evaluate", _evaluate, "measure a checkpoint on a split", example)
    evaluate.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    evaluate.add_argument(
        "--report", type=Path, metavar="DIR", help="where to write evaluation.json, predictions.npz and report.html"
    )
    evaluate.add_argument("--split", help="the split to measure on (default: the test split of the configuration)")
    evaluate.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.*, device, precision or optim.batch_size"
    )

    example = "art predict clip.mp4 --checkpoint runs/motion/checkpoints/last --top-k 3"
    predict = _command(commands, "predict", _predict, "name the action in video files", example)
    predict.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="a video file")
    predict.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a checkpoint, or a run folder")
    predict.add_argument("--top-k", type=int, default=5, help="classes to name (default 5)")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default auto)")
    predict.add_argument("--json", action="store_true", help="print JSON")

    example = "art compare configs/motion.yaml --seeds 3 --over model.linking=index,optimal"
    compare = _command(commands, "compare", _compare, "train with several seeds each way, and compare", example)
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

    example = "art profile configs/motion.yaml model.enhancement_layers=4 --count"
    profile = _command(commands, "profile", _profile, "count and measure a model stage by stage", example)
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


def _prepare(options: argparse.Namespace) -> int:
    from art.data.motion import prepare_motion

    prepare_motion(
        options.root,
        seed=options.seed,
        size=options.size,
        frames=options.frames,
        fps=options.fps,
        train_per_class=options.train_per_class,
        test_per_class=options.test_per_class,
        workers=options.workers,
        force=options.force,
    )
    print(f"prepared {options.root}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from art.engine.config import load_config
    from art.engine.evaluate import table
    from art.engine.train import train

    config = load_config(options.config, options.overrides)
    result = train(config, resume=options.resume, overwrite=options.overwrite)
    measured = result.measured
    print(table(result.evaluation))
    print(
        f"last checkpoint after {measured['steps']} steps, {measured['seconds']:.0f} s, peak memory "
        f"{measured['peak_memory_bytes'] / 2**30:.2f} GiB; everything is in {result.output}"
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from art.engine.evaluate import evaluate_checkpoint, table

    evaluation = evaluate_checkpoint(
        options.checkpoint, split=options.split, overrides=options.overrides, report=options.report
    )
    print(table(evaluation))
    if options.report is not None:
        print(f"written to {options.report}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from art.data.video import VideoError
    from art.engine.evaluate import find_checkpoint
    from art.engine.runtime import resolve_device
    from art.pretrained import load_model

    if options.top_k < 1:
        raise ValueError(f"--top-k: got {options.top_k}, expected at least 1")
    model = load_model(find_checkpoint(options.checkpoint)).to(resolve_device(options.device))
    answers: list[dict[str, object]] = []
    failed = False
    for clip in options.clips:
        try:
            predictions = model.predict(clip, top_k=options.top_k)
        except (VideoError, OSError) as error:
            failed = True
            answers.append({"clip": str(clip), "error": str(error)})
            print(f"art: skipped {clip}: {error}", file=sys.stderr)
            continue
        answers.append({"clip": str(clip), "predictions": [{"class": n, "probability": p} for n, p in predictions]})
        if not options.json:
            print(clip, *(f"  {100 * p:6.2f} %  {name}" for name, p in predictions), sep="\n", flush=True)
    if options.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    return 1 if failed else 0


def _compare(options: argparse.Namespace) -> int:
    from art.engine.compare import compare
    from art.engine.compare_table import as_markdown
    from art.engine.config import load_config

    epochs = [] if options.epochs is None else [f"optim.epochs={options.epochs}"]
    config = load_config(options.config, [*options.overrides, *epochs])
    print(as_markdown(compare(config, options.seeds, options.over)), end="")
    print(f"written to {config.output}: compare.json, compare.md, compare.png")
    return 0


def _profile(options: argparse.Namespace) -> int:
    from art.engine.config import load_config
    from art.profiling import as_table, profile
    from art.visualize.cost import cost_figure
    from art.visualize.style import png_bytes

    config = load_config(options.config, options.overrides)
    result = profile(
        config,
        clips=options.clips,
        classes=options.classes,
        repetitions=options.repetitions,
        measure=not options.count,
    )
    print(as_table(result), end="")
    folder = options.out or Path(config.output) / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figure = cost_figure(result["stages"])
    figure.patch.set(facecolor="white", alpha=1.0)
    (folder / "profile.png").write_bytes(png_bytes(figure))
    print(f"written to {folder}: profile.json, profile.png")
    return 0
