"""What the commands of the benchmarks have in common: arguments, the file of results, pictures."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

Draw = Callable[[dict[str, Any], Path], list[Path]]


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads on the CPU (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="few repetitions, small sizes: only to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the result into this folder (needs matplotlib)")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="measure nothing: draw this result into --plots")
    return parser


def add_names(
    parser: argparse.ArgumentParser,
    option: str,
    kind: str,
    known: Collection[str],
    *,
    default: tuple[str, ...] | None,
    shown_default: str = "all",
    or_none: bool = False,
) -> None:
    """Let an option take some of the known names, joined by commas."""
    parser.add_argument(
        option, type=names(kind, known, or_none=or_none), metavar="NAME,...", default=default,
        help=f"some of {', '.join(known)} (default: {shown_default}){', or none' if or_none else ''}",
    )  # fmt: skip


def names_of_devices(defaults: Mapping[str, tuple[str, ...]]) -> str:
    """Defaults that depend on the device, for a line of help."""
    return "; ".join(f"on {device} {', '.join(default)}" for device, default in defaults.items())


def names(kind: str, known: Collection[str], *, or_none: bool = False) -> Callable[[str], tuple[str, ...]]:
    """A parser of names joined by commas."""

    def parse(text: str) -> tuple[str, ...]:
        if or_none and text == "none":
            return ()
        found = tuple(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                expected = ", ".join(known) + (", or none alone" if or_none else "")
                raise argparse.ArgumentTypeError(
                    f"{name!r} is no {kind}, expected some of {expected}, joined by commas"
                )
        return found

    return parse


def positive(text: str) -> int:
    """A whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return value


def drawing(parser: argparse.ArgumentParser, options: argparse.Namespace, module: str) -> Draw | None:
    """The function that draws, where there is something to draw: what it needs is looked for before the measuring."""
    if options.draw is not None:
        if options.plots is None:
            parser.error("argument --draw: needs --plots DIR, the folder for the pictures")
        if not options.draw.is_file():
            parser.error(f"argument --draw: {options.draw} is no file, expected the --out of an earlier run")
    if options.plots is None:
        return None
    try:
        draw: Draw = importlib.import_module(module).draw
    except ImportError as error:
        parser.error(f"argument --plots: {error}; install the project (pip install -e .), or leave out --plots")
    return draw


def redraw(options: argparse.Namespace, draw: Draw | None) -> int:
    """Draw an earlier result.

    Returns:
        0, for the shell.
    """
    _draw(json.loads(options.draw.read_text()), options, draw)
    return 0


def prepare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ask for the device and the threads that are to be measured."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but torch sees no CUDA device here; use --device cpu")
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def conclude(result: dict[str, Any], options: argparse.Namespace, draw: Draw | None) -> int:
    """Write and draw what was measured.

    Returns:
        0, or 1 where there are failures, for the shell.
    """
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    _draw(result, options, draw)
    return 1 if result["failures"] else 0


def _draw(result: dict[str, Any], options: argparse.Namespace, draw: Draw | None) -> None:
    for path in draw(result, options.plots) if draw is not None else ():
        print(f"drew {path}")
