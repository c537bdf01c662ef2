"""What each command of the command line does. torch and what needs it are imported inside."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

_RENDERED = ("seed", "size", "frames", "fps", "train_per_class", "test_per_class", "force")
_CHECKED = ("splits", "check", "max_failed_fraction", "out", "to")
_ENCODED = ("cut", "short_side", "keyframe_every", "crf")


def run_shards(options: argparse.Namespace) -> int:
    """Writes a data set into tar shards."""
    from art.data.datasets.base import dataset_splits, open_dataset
    from art.data.loading.shards import write_shards

    splits = options.splits or dataset_splits(options.name, options.root)
    if not splits:
        raise ValueError(f"--splits: {options.name} does not tell which splits {options.root} has; name them")
    clip_sets = [open_dataset(options.name, options.root, split) for split in splits]
    for clip_set in clip_sets:
        shards = write_shards(
            clip_set, options.to, shard_bytes=int(options.shard_mib * 2**20), seed=options.seed, url=options.url
        )
        left_out = len(clip_set) - len(shards)
        print(
            f"{clip_set.split}: {len(shards)} clips in {len(shards.shards)} shards"
            + (f", {left_out} could not be read" if left_out else ""),
            flush=True,
        )
    print(f"train from them with data.name=shards data.root={options.to}")
    return 0


def run_prepare(options: argparse.Namespace) -> int:
    """Makes, checks or re-encodes a data set."""
    rendered, checked, encoded = (_given(options, names) for names in (_RENDERED, _CHECKED, _ENCODED))
    if options.name == "motion":
        if checked or encoded:
            raise ValueError(
                f"{_flag(next(iter(checked | encoded)))} is not for 'motion', which is made and not checked"
            )
        from art.data.motion import prepare_motion

        prepare_motion(options.root, workers=options.workers, **rendered)
        print(f"prepared {options.root}")
        return 0
    if rendered:
        raise ValueError(f"{_flag(next(iter(rendered)))} is for 'motion' only, which is rendered")
    if encoded and options.to is None:
        raise ValueError(f"{_flag(next(iter(encoded)))} needs --to DIR, the folder that the new videos go to")
    fraction = options.max_failed_fraction or 0.0
    if not 0 <= fraction <= 1:
        raise ValueError(f"--max-failed-fraction must be in 0..1, got {fraction}")
    return _prepare_videos(options, fraction, encoded)


def _prepare_videos(options: argparse.Namespace, max_failed_fraction: float, encoded: dict[str, Any]) -> int:
    from art.data.files import atomic_write, check_writable
    from art.data.prepare.check import as_table, check_dataset
    from art.data.prepare.convert import prepare_dataset
    from art.data.prepare.reencode import Encoding
    from art.train.runtime import raise_on_sigterm

    chosen: dict[str, Any] = {"splits": options.splits, "workers": options.workers}
    out = options.out or options.to or Path("runs") / f"prepare-{options.name}"
    check_writable(out, "--out")
    with raise_on_sigterm():
        if options.to is None:
            check = check_dataset(options.name, options.root, level=options.check or "open", **chosen)
        else:
            cut, level = bool(encoded.pop("cut", False)), options.check or "exist"
            result = prepare_dataset(
                options.name, options.root, options.to, encoding=Encoding(**encoded), cut=cut, level=level, **chosen
            )
            check = result.check
    print(as_table(check))
    opened = [split.split for split in check.splits if split.error is None]
    if 0 < len(opened) < len(check.splits):
        print(f"to leave out what cannot be opened: --splits {' '.join(opened)}\n")
    if options.to is not None:
        print(f"{options.to}: {result.made} videos made, {result.kept} were there")
    text = json.dumps(check.as_json(), indent=1, ensure_ascii=False) + "\n"
    atomic_write(out / "prepare.json", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"everything is in {out / 'prepare.json'}")
    return 1 if check.failed_fraction > max_failed_fraction else 0


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def run_train(options: argparse.Namespace) -> int:
    """Trains a model."""
    from art.eval.metrics import accuracy_table
    from art.train.config import load_config
    from art.train.distributed import is_main_process
    from art.train.loop import train

    config = load_config(options.config, options.overrides)
    resume: bool | Literal["auto"] = "auto" if options.auto_resume else options.resume
    result = train(config, resume=resume, overwrite=options.overwrite)
    if not is_main_process():
        return 0
    measured = result.measured
    print(accuracy_table(result.evaluation))
    print(
        f"last checkpoint after {measured['steps']} steps, {measured['seconds']:.0f} s, peak memory "
        f"{measured['peak_memory_bytes'] / 2**30:.2f} GiB; everything is in {result.output}"
    )
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """Measures a checkpoint on a split."""
    from art.eval.metrics import accuracy_table
    from art.eval.evaluate import evaluate_checkpoint

    evaluation = evaluate_checkpoint(
        options.checkpoint, split=options.split, overrides=options.overrides, report=options.report
    )
    print(accuracy_table(evaluation))
    if options.report is not None:
        print(f"written to {options.report}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Measures saved predictions again."""
    from art.eval.metrics import accuracy_table
    from art.eval.predictions import score

    scored = score(options.predictions, report=options.report)
    print(accuracy_table(scored.evaluation))
    if options.report is not None:
        print(f"written to {options.report}")
    return 0


def run_predict(options: argparse.Namespace) -> int:
    """Names the action in video files."""
    from art.tools.predict import ClipPredictor, PredictionSettings, open_inputs

    for name, least in (("top_k", 1), ("views", 1), ("batch_size", 1), ("workers", 0), ("part_clips", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"{_flag(name)}: got {getattr(options, name)}, expected at least {least}")
    if options.crops not in (1, 3):
        raise ValueError(f"--crops: got {options.crops}, expected 1 or 3")
    names = ("checkpoint", "top_k", "views", "crops", "batch_size", "workers", "precision")
    settings = PredictionSettings(**{name: getattr(options, name) for name in names})
    if options.out is not None:
        return _predict_to_parquet(options, settings)
    if options.devices or options.jobs != 1 or options.all_probabilities:
        raise ValueError("--devices, --jobs and --all-probabilities need --out DIR, the folder of the Parquet files")
    predictor = ClipPredictor(settings, options.device)
    sources = open_inputs(options.clips, options.part_clips)
    told: list[dict[str, object]] = []
    failed = False
    for answer in (answer for source in sources for answer in predictor(source.open())):
        clip = answer.item.name
        if answer.error is not None:
            failed = True
            told.append({"clip": clip, "error": f"{clip}: {answer.error}"})
            print(f"art: skipped {clip}: {answer.error}", file=sys.stderr)
            continue
        best = answer.best(predictor.class_names, options.top_k)
        told.append({"clip": clip, "predictions": [{"class": n, "probability": p} for n, p in best]})
        if not options.json:
            print(clip, *(f"  {100 * p:6.2f} %  {name}" for name, p in best), sep="\n", flush=True)
    if options.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    return 1 if failed else 0


def run_explain(options: argparse.Namespace) -> int:
    """Shows what a model looks at in a video."""
    from art.tools.explain import explain_to_directory
    from art.tools.explain.figures import FILES

    out = options.out or Path("runs") / f"explain-{options.clip.stem}"
    explanation = explain_to_directory(
        options.clip,
        options.checkpoint,
        out,
        top_k=options.top_k,
        timeline_points=options.timeline_points,
        device=options.device,
    )
    for c in explanation.best(options.top_k):
        print(f"  {100 * float(explanation.probabilities[c]):6.2f} %  {explanation.class_names[c]}")
    for name, reason in explanation.missing.items():
        print(f"no {name} of this backbone: {reason}")
    print(f"written to {out}: {', '.join(FILES)}")
    return 0


def run_bank(options: argparse.Namespace) -> int:
    """Shows the texts of the classes before and after training."""
    from art.tools.bank import write_bank_analysis

    out = options.out or Path("runs") / f"bank-{options.checkpoint.resolve().name}"
    _, files = write_bank_analysis(options.checkpoint, out, lambda said: print(f"art: {said}", file=sys.stderr))
    print(f"written to {out}: {', '.join(file.name for file in files)}")
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Serves a page to try a model on, until it is stopped."""
    from art.tools.serve import Limits, RequestOptions, ServeSettings, serve

    sizes = {name: getattr(options, f"max_{name}") for name in ("megabytes", "seconds", "frames", "megapixels")}
    names = ("checkpoint", "host", "port", "token", "keep_minutes", "max_waiting", "timeout", "device")
    serve(
        ServeSettings(
            **{name: getattr(options, name) for name in names},
            options=RequestOptions(
                top_k=options.top_k, timeline_points=options.timeline_points, limits=Limits(**sizes)
            ),
        ),
        lambda said: print(said, flush=True),
    )
    return 0


def _predict_to_parquet(options: argparse.Namespace, settings: Any) -> int:
    from art.tools.predict.parquet import predict_to_parquet
    from art.train.runtime import expand_devices

    if options.json:
        raise ValueError("--json: prints answers, expected without --out, which writes them")
    written = predict_to_parquet(
        options.clips,
        settings,
        options.out,
        devices=expand_devices(_listed(options.devices) or [options.device], options.jobs),
        all_probabilities=options.all_probabilities,
        part_clips=options.part_clips,
    )
    print(f"{written.clips} clips in {written.parts} files ({written.kept} were there), {written.errors} not readable")
    print(f"written to {options.out}")
    return 1 if written.errors else 0


def run_export(options: argparse.Namespace) -> int:
    """Writes a model as a file that needs no ART to run."""
    from art.tools.export import export_checkpoint

    outputs = tuple(_listed(options.outputs))
    exported = export_checkpoint(options.checkpoint, options.out, options.format, outputs=outputs, clips=options.clips)
    check = exported.facts["check"]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in check["difference"].items())
    batches = ", ".join(map(str, check["batches"]))
    print(f"checked on {check['clips']} clips, {batches} at once: differs from the model by {differences}")
    print(f"written to {options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Trains with several seeds each way."""
    from art.experiments.compare import compare, to_markdown
    from art.train.config import load_config

    epochs = [] if options.epochs is None else [f"optim.epochs={options.epochs}"]
    config = load_config(options.config, [*options.overrides, *epochs])
    print(to_markdown(compare(config, options.seeds, options.over)), end="")
    print(f"written to {config.output}: compare.json, compare.md, compare.png")
    return 0


def run_ablate(options: argparse.Namespace) -> int:
    """Trains the paper's ablations."""
    from art.experiments.ablate import ablate, format_plan, make_plan, to_markdown
    from art.train.config import load_config
    from art.train.runtime import expand_devices

    config = load_config(options.config, options.overrides)
    only = _listed(options.only)
    devices = expand_devices(_listed(options.devices) or [config.device], options.jobs)
    if options.dry_run:
        print(format_plan(make_plan(config, options.seeds, only), len(devices)), end="")
        return 0
    print(to_markdown(ablate(config, options.seeds, only, devices)), end="")
    print(f"written to {config.output}: ablate.json, ablate.md, ablate.png")
    return 0


def _listed(text: str | None) -> list[str]:
    """The parts of ``one,two``."""
    return [] if text is None else [part.strip() for part in text.split(",")]


def run_profile(options: argparse.Namespace) -> int:
    """Counts and measures a model stage by stage."""
    from art.eval.report.curves import cost_figure
    from art.eval.report.style import png_bytes
    from art.tools.profile import as_table, profile
    from art.train.config import load_config

    config = load_config(options.config, options.overrides)
    folder = options.out or Path(config.output) / "profile"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: {folder} is a file, expected a folder, which may be new")
    result = profile(
        config,
        clips=options.clips,
        classes=options.classes,
        repetitions=options.repetitions,
        measure=not options.count,
    )
    print(as_table(result), end="")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figure = cost_figure(result["stages"])
    figure.patch.set(facecolor="white", alpha=1.0)
    (folder / "profile.png").write_bytes(png_bytes(figure))
    print(f"written to {folder}: profile.json, profile.png")
    return 0
