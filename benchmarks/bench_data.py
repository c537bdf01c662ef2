"""Frames out of video files, and the whole loader against a model step, beside what a user would pick instead.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --leak 20000 --out result.json --plots plots

Each reads 16 of 300 frames, the centres of as many equal segments, of H.264 files, in one thread:

    torchcodec               VideoDecoder.get_frames_at; the faster of its modes "exact" and "approximate"
    decord                   VideoReader.get_batch
    opencv                   VideoCapture; the faster of all frames in order and a seek to each
    art                      art.data.read_chosen (PyAV)
    art, decoder=torchcodec  the same with data.decoder=torchcodec

Before anything is timed the frames are compared with those of a decoder that goes through the whole file. art gives one
tensor [n, 3, h, w]; the others are timed up to what they give by themselves. Times are those of the cores, all threads
together, so that a rate is that of one core, and several processes have as many times that as there are cores. Time to
the first clip (by the clock) and memory are those of a new process.

The loader is measured with each number of workers, by itself and against a model step: steps of given length that leave
the CPU alone, as a GPU's does, and a training step of ART on the tiny backbone.

`--leak N` decodes N times, good files and bad, and fails where memory grows. Peers that cannot be imported or do not
decode are left out, and it says why: pip install -c constraints.txt ".[bench]"; torchcodec needs FFmpeg's libraries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: the folder of `benchmarks` and `art` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import add_names, conclude, drawing, new_parser, positive, prepare, redraw
from benchmarks.data_measure import Settings, run
from benchmarks.data_table import print_records, print_summary
from benchmarks.data_videos import CASES

_WORKERS = tuple(str(count) for count in (0, 1, 2, 4, 8, 16))


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a provider failed or gave wrong frames, or memory grew.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = drawing(parser, options, "benchmarks.data_charts")
    if options.draw is not None:
        return redraw(options, draw)
    prepare(parser, options)
    settings = Settings(
        device=options.device,
        cases=options.cases,
        workers=tuple(map(int, options.workers)),
        leak=options.leak or 0,
        quick=options.quick,
    )
    result = run(settings, report=print_records)
    print_summary(result)
    return conclude(result, options, draw)


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    add_names(parser, "--cases", "case", CASES, default=tuple(CASES), or_none=True)
    add_names(parser, "--workers", "number of workers", _WORKERS, default=("0", "1", "2"), shown_default="0,1,2",
              or_none=True)  # fmt: skip
    parser.add_argument("--leak", type=positive, metavar="N", help="decode so many times and look at the memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
