"""Implementation of the commands of :mod:`art.cli`. Each imports what it needs inside its function."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from art.terminal import plural, printable

_RENDER_OPTIONS = ("seed", "size", "frames", "fps", "train_per_class", "test_per_class", "force")
_CHECK_OPTIONS = ("splits", "check", "max_failed_fraction", "out", "to")
_ENCODE_OPTIONS = ("cut", "short_side", "keyframe_every", "crf")


def run_prepare(options: argparse.Namespace) -> int:
    """Create, check, or re-encode a dataset."""
    render, check, encode = (_passed(options, names) for names in (_RENDER_OPTIONS, _CHECK_OPTIONS, _ENCODE_OPTIONS))
    if options.name == "motion":
        if check or encode:
            raise ValueError(f"{_flag(next(iter(check | encode)))} is not for 'motion', which is rendered")
        from art.data.motion import prepare_motion

        prepare_motion(options.root, workers=options.workers, **render)
        print(f"prepared {options.root}")
        return 0
    if render:
        raise ValueError(f"{_flag(next(iter(render)))} is for 'motion' only, which is rendered")
    if encode and options.to is None:
        raise ValueError(f"{_flag(next(iter(encode)))} needs --to DIR, the directory for the new videos")
    fraction = options.max_failed_fraction or 0.0
    if not 0 <= fraction <= 1:
        raise ValueError(f"--max-failed-fraction must be in 0..1, got {fraction}")
    return _prepare_videos(options, fraction, encode)


def _prepare_videos(options: argparse.Namespace, max_failed_fraction: float, encode: dict[str, Any]) -> int:
    from art.data.files import check_writable, write_text
    from art.data.prepare.check import as_table, check_dataset
    from art.data.prepare.convert import prepare_dataset
    from art.data.prepare.reencode import Encoding
    from art.train.runtime import raise_on_sigterm

    common: dict[str, Any] = {"splits": options.splits, "workers": options.workers}
    out = options.out or options.to or Path("runs") / f"prepare-{options.name}"
    check_writable(out, "--out")
    with raise_on_sigterm():
        if options.to is None:
            check = check_dataset(options.name, options.root, level=options.check or "open", **common)
        else:
            cut, level = bool(encode.pop("cut", False)), options.check or "exist"
            result = prepare_dataset(
                options.name, options.root, options.to, encoding=Encoding(**encode), cut=cut, level=level, **common
            )
            check = result.check
    print(as_table(check))
    valid = [split.split for split in check.splits if split.error is None]
    if 0 < len(valid) < len(check.splits):
        print(f"to skip splits that cannot be opened: --splits {' '.join(valid)}\n")
    if options.to is not None:
        print(f"{options.to}: {plural(result.made, 'video')} written, {result.kept} already existed")
    write_text(out / "prepare.json", json.dumps(check.as_json(), indent=1, ensure_ascii=False) + "\n")
    print(f"details: {out / 'prepare.json'}")
    return 1 if check.failed_fraction > max_failed_fraction else 0


def run_shards(options: argparse.Namespace) -> int:
    """Convert a dataset to tar shards."""
    from art.data.datasets.base import dataset_splits, open_dataset
    from art.data.files import is_url, parse_location
    from art.data.shards import write_shards

    url = parse_location(options.url, "--url", allow_remote=True) if options.url else options.to
    splits = options.splits or dataset_splits(options.name, options.root)
    if not splits:
        raise ValueError(f"--splits: the splits of {options.name} in {options.root} are unknown; pass their names")
    clip_sets = [open_dataset(options.name, options.root, split) for split in splits]
    complete = True
    for clip_set in clip_sets:
        shards = write_shards(
            clip_set, options.to, shard_bytes=int(options.shard_mib * 2**20), seed=options.seed, check=_problem_of
        )
        skipped = len(clip_set) - len(shards)
        complete &= skipped == 0
        included = "is" if skipped == 1 else "are"
        suffix = f", {skipped} could not be read and {included} not included (art prepare lists all)" if skipped else ""
        counts = f"{plural(len(shards), 'clip')} in {plural(len(shards.shards), 'shard')}"
        print(f"{clip_set.split}: {counts}{suffix}", flush=True)
    copy = f"copy {options.to} to {url}, and " if is_url(url) else ""
    print(f"{copy}use them for training with data.name=shards data.root={url}")
    return 0 if complete else 1


def _problem_of(clip: Path) -> str | None:
    from art.data.decoding.video import VideoError, frame_times

    try:
        frame_times(clip)
    except VideoError as error:
        return error.reason
    return None


def run_train(options: argparse.Namespace) -> int:
    """Train a model."""
    from art.eval.metrics import accuracy_table
    from art.train.config import load_config
    from art.train.distributed import is_main_process
    from art.train.loop import train

    config = load_config(options.config, options.overrides)
    resume: bool | Literal["auto"] = "auto" if options.auto_resume else options.resume
    result = train(config, resume=resume, overwrite=options.overwrite, allow_changed_data=options.allow_changed_data)
    if not is_main_process():
        return 0
    measured = result.measured
    print(accuracy_table(result.evaluation))
    print(
        f"last checkpoint: step {measured['steps']}, {measured['seconds']:.0f} s, peak memory "
        f"{measured['peak_memory_bytes'] / 2**30:.2f} GiB; output directory: {result.output}"
    )
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate a checkpoint on a split."""
    from art.eval.evaluate import evaluate_checkpoint
    from art.eval.metrics import accuracy_table

    evaluation = evaluate_checkpoint(
        options.checkpoint, split=options.split, overrides=options.overrides, report=options.report
    )
    print(accuracy_table(evaluation))
    if options.report is not None:
        print(f"written to {options.report}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Evaluate saved predictions."""
    from art.eval.metrics import accuracy_table
    from art.eval.predictions import score

    scored = score(options.predictions, report=options.report)
    print(accuracy_table(scored.evaluation))
    if options.report is not None:
        print(f"written to {options.report}")
    return 0


def run_predict(options: argparse.Namespace) -> int:
    """Predict the action in video files."""
    from art.tools.predict import ClipPredictor, PredictionSettings, open_inputs

    for name, minimum in (("top_k", 1), ("views", 1), ("batch_size", 1), ("workers", 0), ("part_clips", 1)):
        if getattr(options, name) < minimum:
            raise ValueError(f"{_flag(name)}: got {getattr(options, name)}, expected at least {minimum}")
    if options.crops not in (1, 3):
        raise ValueError(f"--crops: got {options.crops}, expected 1 or 3")
    names = ("checkpoint", "top_k", "views", "crops", "batch_size", "workers", "precision")
    settings = PredictionSettings(**{name: getattr(options, name) for name in names})
    if options.out is not None:
        return _predict_to_parquet(options, settings)
    if options.devices or options.jobs != 1 or options.all_probabilities:
        raise ValueError("--devices, --jobs and --all-probabilities need --out DIR, the directory of Parquet files")
    predictor = ClipPredictor(settings, options.device)
    sources = open_inputs(options.clips, options.part_clips)
    results: list[dict[str, object]] = []
    failed = False
    for prediction in (prediction for source in sources for prediction in predictor(source.open())):
        clip = prediction.item.name
        if prediction.error is not None:
            failed = True
            results.append({"clip": clip, "error": f"{clip}: {prediction.error}"})
            print(printable(f"art: skipped {clip}: {prediction.error}"), file=sys.stderr)
            continue
        best = prediction.best(predictor.class_names, options.top_k)
        results.append({"clip": clip, "predictions": [{"class": n, "probability": p} for n, p in best]})
        if not options.json:
            lines = [clip, *(f"  {100 * p:6.2f} %  {name}" for name, p in best)]
            print(*map(printable, lines), sep="\n", flush=True)
    if options.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    return 1 if failed else 0


def _predict_to_parquet(options: argparse.Namespace, settings: Any) -> int:
    from art.tools.predict.parquet import predict_to_parquet
    from art.train.runtime import expand_devices

    if options.json:
        raise ValueError("--json: prints predictions and cannot be combined with --out, which writes them to files")
    written = predict_to_parquet(
        options.clips,
        settings,
        options.out,
        devices=expand_devices(_split_commas(options.devices) or [options.device], options.jobs),
        all_probabilities=options.all_probabilities,
        part_clips=options.part_clips,
    )
    print(
        f"{plural(written.clips, 'clip')} in {plural(written.parts, 'file')} ({written.kept} already existed), "
        f"{written.errors} could not be read"
    )
    print(f"written to {options.out}")
    return 1 if written.errors else 0


def run_explain(options: argparse.Namespace) -> int:
    """Show which regions of a video a model uses."""
    from art.data.files import parse_location
    from art.tools.explain import explain_to_directory
    from art.tools.explain.figures import FILES

    clip = parse_location(options.clip, "CLIP")
    # Clips of several directories often have the same names.
    out = options.out or Path("runs") / "-".join(["explain", *Path(clip).absolute().with_suffix("").parts[1:][-2:]])
    names = ("top_k", "timeline_points", "device")
    explanation = explain_to_directory(
        Path(clip), options.checkpoint, out, **{name: getattr(options, name) for name in names}
    )
    for c in explanation.best(options.top_k):
        print(printable(f"  {100 * float(explanation.probabilities[c]):6.2f} %  {explanation.class_names[c]}"))
    for name, reason in explanation.missing.items():
        print(f"no {name} for this backbone: {reason}")
    print(f"written to {out}: {', '.join(FILES)}")
    return 0


def run_bank(options: argparse.Namespace) -> int:
    """Show the class texts before and after training."""
    from art.tools.bank import write_bank_analysis

    out = options.out or Path("runs") / f"bank-{options.checkpoint.resolve().name}"
    _, files = write_bank_analysis(options.checkpoint, out, lambda line: print(f"art: {line}", file=sys.stderr))
    print(f"written to {out}: {', '.join(file.name for file in files)}")
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Serve a web page to try a model on, until it is stopped."""
    from art.tools.serve import Limits, RequestOptions, ServeSettings, serve

    limits = Limits(
        **{name: getattr(options, f"max_{name}") for name in ("megabytes", "seconds", "frames", "megapixels")}
    )
    request = RequestOptions(top_k=options.top_k, timeline_points=options.timeline_points, limits=limits)
    names = ("checkpoint", "host", "port", "token", "keep_minutes", "max_waiting", "timeout", "device")
    settings = ServeSettings(**{name: getattr(options, name) for name in names}, options=request)
    serve(settings, lambda line: print(line, flush=True))
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Export a model to a file that runs without ART."""
    from art.tools.export import export_checkpoint

    outputs = tuple(_split_commas(options.outputs))
    exported = export_checkpoint(options.checkpoint, options.out, options.format, outputs=outputs, clips=options.clips)
    check = exported.facts["check"]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in check["difference"].items())
    batches = ", ".join(map(str, check["batches"]))
    clips = plural(check["clips"], "clip")
    print(f"checked on {clips} with batch sizes {batches}: differs from the model by {differences}")
    print(f"written to {options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")
    return 0


def run_extract(options: argparse.Namespace) -> int:
    """Write the features of a frozen backbone."""
    from art.tools.extract import Extractor, ExtractSettings, extract, plan
    from art.train.config import load_config
    from art.train.runtime import expand_devices

    config = load_config(options.config, options.overrides)
    splits = tuple(options.splits or dict.fromkeys((config.data.train_split, config.data.test_split)))
    settings = ExtractSettings(config, splits, tuple(options.layers), options.views, options.dtype)
    devices = expand_devices(_split_commas(options.devices) or ["auto"], options.jobs)
    if options.dry_run:
        planned = plan(Extractor(settings, devices[0]), options.out, measured_clips=4)
        minutes = (planned.seconds or 0) / len(devices) / 60
        print(
            f"{plural(planned.clips, 'clip')}, each with {plural(settings.views, 'view')} of "
            f"{plural(planned.tokens, 'token')}\n"
            f"{planned.clip_bytes / 2**20:.2f} MiB per clip, {planned.total_bytes / 2**30:.2f} GiB in total; "
            f"{planned.free_bytes / 2**30:.1f} GiB are free\n"
            f"about {minutes:.1f} min with {plural(len(devices), 'process', 'processes')}"
        )
        return 0
    written = extract(settings, options.out, devices=devices)
    files = plural(written.parts, "file")
    print(f"{plural(written.clips, 'clip')} in {files} ({written.kept} already existed), {written.errors} failed")
    if total := sum(written.seconds.values()):
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in written.seconds.items())
        print(f"{stages}: {100 * (1 - written.seconds['other'] / total):.0f} % decoding and forward passes")
    print(f"written to {options.out}")
    return 1 if written.errors else 0


def run_features(options: argparse.Namespace) -> int:
    """Describe features, and verify their checksums."""
    from art.data.features import describe, verify

    print(describe(options.directory))
    if options.verify:
        print(f"verified {plural(verify(options.directory), 'file')}")
    return 0


def run_probe(options: argparse.Namespace) -> int:
    """Train heads on stored features."""
    from art.experiments.probe import run_probe as run
    from art.experiments.probe_training import parse_settings

    out = options.out or options.directory / "probe"
    table = run(options.directory, out, parse_settings(options.overrides))
    print(f"{table}\nwritten to {out}")
    return 0


def run_fit(options: argparse.Namespace) -> int:
    """Train a classifier of clips in class directories on a frozen backbone."""
    from art.experiments.fit import DEFAULTS, configure, fit_directory, to_text
    from art.experiments.probe_training import parse_settings

    own = [item for item in options.overrides if item.startswith(("data.", "model.", "precision="))]
    settings = parse_settings([item for item in options.overrides if item not in own], DEFAULTS)
    config = configure(options.directory, options.backbone, options.pretrained, own)
    out = options.out or Path("runs") / f"fit-{options.directory.resolve().name}"
    print(to_text(fit_directory(config, out, settings, folds=options.folds)))
    print(f"written to {out}; try: art predict --checkpoint {out} CLIP")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Train variants with several seeds and compare them."""
    from art.experiments.compare import compare, to_markdown
    from art.train.config import load_config

    epochs = [] if options.epochs is None else [f"optim.epochs={options.epochs}"]
    config = load_config(options.config, [*options.overrides, *epochs])
    print(to_markdown(compare(config, options.seeds, options.over)), end="")
    print(f"written to {config.output}: compare.json, compare.md, compare.png")
    return 0


def run_ablate(options: argparse.Namespace) -> int:
    """Train and compare the paper's ablations."""
    from art.experiments.ablate import ablate, format_plan, make_plan, to_markdown
    from art.train.config import load_config
    from art.train.runtime import expand_devices

    config = load_config(options.config, options.overrides)
    only = _split_commas(options.only)
    devices = expand_devices(_split_commas(options.devices) or [config.device], options.jobs)
    if options.dry_run:
        print(format_plan(make_plan(config, options.seeds, only), len(devices)), end="")
        return 0
    print(to_markdown(ablate(config, options.seeds, only, devices)), end="")
    print(f"written to {config.output}: ablate.json, ablate.md, ablate.png")
    return 0


def run_profile(options: argparse.Namespace) -> int:
    """Profile a model stage by stage."""
    from art.data.files import write_text
    from art.eval.report.curves import cost_figure
    from art.eval.report.style import png_bytes
    from art.tools.profile import as_table, profile
    from art.train.config import load_config

    config = load_config(options.config, options.overrides)
    out = options.out or Path(config.output) / "profile"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, expected a new or an existing directory")
    names = ("clips", "classes", "repetitions")
    result = profile(config, **{name: getattr(options, name) for name in names}, measure=not options.count)
    print(as_table(result), end="")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "profile.json", json.dumps(result, indent=1) + "\n")
    figure = cost_figure(result["stages"])
    figure.patch.set(facecolor="white", alpha=1.0)
    (out / "profile.png").write_bytes(png_bytes(figure))
    print(f"written to {out}: profile.json, profile.png")
    return 0


def _passed(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the options that were passed on the command line."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _split_commas(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",")]
