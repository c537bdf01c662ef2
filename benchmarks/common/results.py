"""A benchmark run: its results and where they were measured, the results file, tables, and the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import require_compiled_module
from benchmarks.common.timing import TimingConfig

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_TIME = "the time for the benchmarks is used up"
QUICK_NOTE = "sizes and repetitions are minimal (--quick): the times are meaningless"

Record = dict[str, Any]
Report = Callable[[list[Record]], None]


@dataclass
class Results:
    """The results so far, and what they are measured with.

    Attributes:
        benchmark: name of the benchmark.
        device: device under test.
        settings: a dataclass with the arguments of the run.
        timing: number of repetitions.
        deadline: value of `time.monotonic()` after which no new case starts; None for no limit.
        report: called with the new records whenever a case is done.
        records: one dictionary per measurement.
        skipped: cases and providers that were not measured, each with its reason.
        failures: cases and providers that failed, each with its error.
    """

    benchmark: str
    device: torch.device
    settings: Any
    timing: TimingConfig
    deadline: float | None = None
    report: Report | None = None
    records: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)
    failures: list[Record] = field(default_factory=list)

    def skip(self, reason: str, **case: object) -> None:
        """Record that a case or provider is not measured."""
        self.skipped.append({**case, "reason": reason})

    def out_of_time(self, **case: object) -> bool:
        """Return whether the deadline has passed; if so, record the case as skipped."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        if late:
            self.skip(OUT_OF_TIME, **case)
        return late

    @contextmanager
    def catch_failure(self, **case: object) -> Iterator[None]:
        """Print an error raised in this block and add it to `failures`, so that the run continues."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0][:300]
            self.failures.append({**case, "error": f"{type(error).__name__}: {first_line}"})

    @contextmanager
    def case(self, **case: object) -> Iterator[None]:
        """Measure one case: catch its failure, report its records, and release cached device memory."""
        before = len(self.records)
        with self.catch_failure(**case):
            yield
        if self.report is not None and len(self.records) > before:
            self.report(self.records[before:])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def to_dict(self, **more: object) -> dict[str, Any]:
        """Return everything that goes into the results file; `more` are further entries."""
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.settings).items()}
        return {
            "benchmark": self.benchmark,
            **provenance(self.device),
            "arguments": {**arguments, "timing": asdict(self.timing)},
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            **more,
            "records": self.records,
            "skipped": self.skipped,
            "failures": self.failures,
        }


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON and create missing parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return device, host, versions, commit and date; no entry contains a path on the machine."""
    return {
        "machine": describe_machine(device),
        "torch": str(torch.__version__),
        "triton": triton_version(),
        "python": platform.python_version(),
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return facts about the device and the host; sizes are in bytes."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type,
        "host": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda or torch.version.hip,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return facts


def device_name(device: torch.device) -> str:
    """Return the manufacturer's name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Return the model name of the processor, as far as the system reports it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """Return a name in lower case with hyphens, for use in a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def triton_version() -> str | None:
    """Return Triton's version, or None if it cannot be imported."""
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return None


def git_commit() -> str | None:
    """Return the commit of the source, with "+" if tracked files differ from it; None outside of a git repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


#: Column headings and functions from a record to the cell.
Columns = Mapping[str, Callable[[Record], str]]

TIME_COLUMNS: Columns = {
    "ms": lambda record: f"{record['median_ms']:.4g}",
    "20-80 %": lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}",
}
SPEEDUP_COLUMNS: Columns = {
    "vs baseline": lambda record: speedup(record["speedup_over_baseline"]),
    "vs best other": lambda record: speedup(record.get("speedup_over_best_other")),
}
RATIO_COLUMNS: Columns = {
    "of baseline": lambda record: f"{record['ratio']:.3f}x",
    "ratio 20-80 %": lambda record: f"{record['ratio_p20']:.3f}-{record['ratio_p80']:.3f}",
}
LIMIT_COLUMNS: Columns = {
    "MiB": lambda record: mebibytes(record["peak_extra_bytes"]),
    "GB/s": lambda record: f"{record['achieved_gbs']:.3g}",
    "of copy": lambda record: f"{100 * record['copy_fraction']:.1f}%",
    "of limit": lambda record: f"{100 * record['limit_fraction']:.1f}%",
    "error": lambda record: f"{max(record['errors'].values()):.1e}",
    "backend": lambda record: record["served_by"] or "",
}


def print_table(columns: Columns, records: Sequence[Record]) -> None:
    """Print headings and one line per record; columns of numbers are right-aligned."""
    rows = [[content(record) for content in columns.values()] for record in records]
    cells = list(zip(columns, *rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    numeric = [all(cell[:1].isdigit() or not cell for cell in column[1:]) for column in cells]
    for row in (list(columns), *rows):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print(("  " + "  ".join(padded)).rstrip(), flush=True)


def print_footer(result: Mapping[str, Any], *notes: str) -> None:
    """Print where and when the result was measured, further notes, and what is skipped or failed."""
    machine = result["machine"]
    print(
        f"\n{machine['device']}, {machine['threads']} threads, torch {result['torch']}, triton {result['triton']}, "
        f"{result['date']}"
    )
    if "copy_gbs" in result:
        rates = ", ".join(f"{rate:.3g} TFLOP/s in {dtype}" for dtype, rate in result["matrix_tflops"].items())
        print(f"copy bandwidth {result['copy_gbs']:.1f} GB/s; matrix product {rates}")
    for note in (*notes, *((f"note: {QUICK_NOTE}",) if result["arguments"]["quick"] else ())):
        print(note)
    for entry in result["skipped"]:
        print(f"skipped: {_case_text(entry)}: {entry['reason']}")
    for entry in result["failures"]:
        print(f"FAILED: {_case_text(entry)}: {entry['error']}")


def _case_text(entry: Record) -> str:
    return ", ".join(str(value) for name, value in entry.items() if name not in ("reason", "error"))


def print_goals(goals: Sequence[tuple[str, float, float]]) -> None:
    """Print for each (description, value, upper bound) whether the value is within the bound."""
    for description, value, bound in goals:
        print(f"{'reached' if value <= bound else 'MISSED'}: {description}: {value:,.3f}, at most {bound:,.2f}")


def speedup(value: float | None) -> str:
    """Format a speedup; empty if there is none."""
    return "" if value is None else f"{value:.2f}x"


def mebibytes(size: int | None) -> str:
    """Format a number of bytes in MiB; empty if there is none."""
    return "" if size is None else f"{size / 2**20:.1f}"


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
