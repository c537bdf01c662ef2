"""The command line of a benchmark: common arguments, measuring or drawing, the exit status."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import require_compiled_module
from benchmarks.common.results import save

Draw = Callable[[dict[str, Any], Path], list[Path]]


def new_parser(description: str | None, *, devices: tuple[str, ...] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="minimal sizes and repetitions, to check that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results to this file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw charts into this directory (needs matplotlib)")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="draw an existing results file into --plots")
    return parser


def add_names(
    parser: argparse.ArgumentParser,
    option: str,
    kind: str,
    known: Collection[str],
    *,
    default: tuple[str, ...] | None,
    default_text: str = "all",
    allow_none: bool = False,
) -> None:
    """Add an option that takes comma-separated names out of `known`; with `allow_none` also the word "none"."""
    parser.add_argument(
        option, type=names(kind, known, allow_none=allow_none), metavar="NAME,...", default=default,
        help=f"any of {', '.join(known)}{', or none' if allow_none else ''} (default: {default_text})",
    )  # fmt: skip


def per_device(defaults: Mapping[str, tuple[str, ...]]) -> str:
    """Describe defaults that depend on the device, for a help text."""
    return "; ".join(f"{device}: {', '.join(default)}" for device, default in defaults.items())


def names(kind: str, known: Collection[str], *, allow_none: bool = False) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type that parses comma-separated names."""

    def parse(text: str) -> tuple[str, ...]:
        if allow_none and text == "none":
            return ()
        found = tuple(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                expected = ", ".join(known) + (", or none alone" if allow_none else "")
                raise argparse.ArgumentTypeError(
                    f"{name!r} is not a {kind}, expected one or more of {expected}, separated by commas"
                )
        return found

    return parse


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected an integer of at least 1")
    return value


def run_command(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    measure: Callable[[], dict[str, Any]],
    draw: Draw,
) -> int:
    """Run a benchmark, or draw an existing results file.

    Args:
        parser: reports invalid arguments.
        options: the parsed arguments.
        measure: measures and prints tables; returns the result.
        draw: writes the charts of a result into a directory.

    Returns:
        The exit status: 1 if anything failed, else 0.
    """
    if options.draw is not None:
        if options.plots is None:
            parser.error("argument --draw: requires --plots DIR, the directory for the charts")
        if not options.draw.is_file():
            parser.error(f"argument --draw: {options.draw} is not a file, expected the --out of an earlier run")
    if options.plots is not None:  # checked before measuring
        try:
            importlib.import_module("benchmarks.common.charts")
        except ImportError as error:
            parser.error(f"argument --plots: {error}; run: pip install '.[train]', or omit --plots")
    if options.draw is not None:
        result = json.loads(options.draw.read_text())
    else:
        if options.device == "cuda" and not torch.cuda.is_available():
            parser.error("argument --device: cuda, but torch finds no CUDA device; use --device cpu")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            require_compiled_module()
        except RuntimeError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        result = measure()
        if options.out is not None:
            save(result, options.out)
    for path in draw(result, options.plots) if options.plots is not None else ():
        print(f"wrote {path}")
    return 1 if result["failures"] else 0
