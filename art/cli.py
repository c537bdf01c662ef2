"""The command line interface. Commands import torch and other large libraries on use, so that help appears at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from art.extras import missing_extra_message
from art.parser import build_parser
from art.terminal import prepare_output, printable

# Exit codes of errors that are reported in one line, by (module, name). Only a loaded module can have raised one:
# comparing by name loads neither torch nor modules that need an extra.
_EXIT_CODES = {
    ("art.model.files", "NonFiniteError"): 1,
    ("art.data.decoding.video", "VideoError"): 2,
    ("art.data.dataset", "DataError"): 2,
    ("art.experiments.compare", "RunsFailed"): 2,
    ("art.train.distributed", "OtherRankError"): 2,
    ("art.train.loop", "NonFiniteLoss"): 2,
}
_INTERRUPTED = ("art.train.runtime", "Interrupted")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code of the process.

    0: success. 1: ``predict`` could not read a clip, ``prepare`` found missing or broken clips, or the weights or
    outputs of a model are not finite. 2: invalid usage, configuration, data, or files, reported in one line
    (``--traceback`` prints the traceback). 128 + signal number (130 or 143): interrupted.
    """
    prepare_output()
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # In "train CONFIG --resume key=value", argparse does not assign overrides that follow an option.
    if any(item.startswith("-") or "=" not in item or not hasattr(options, "overrides") for item in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    if options.version:
        from art import __version__

        print(f"art {__version__}")
        return 0
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
        if code is not None and _is_printed_here(error):
            message = missing_extra_message(error, f"art {options.command}") or error
            text = "\n".join(map(printable, str(message).splitlines()))
            print(f"art: {'error: ' if code == 2 else ''}{text}", file=sys.stderr)
        return code or 1


def _is_printed_here(error: Exception) -> bool:
    """Return whether this process prints the error. Only rank 0 of a training run reports an interruption."""
    if not _is_instance(error, _INTERRUPTED):
        return True
    from art.train.distributed import is_main_process

    return is_main_process()


def _is_instance(error: Exception, type_name: tuple[str, str]) -> bool:
    module, name = type_name
    return isinstance(error, getattr(sys.modules.get(module), name, ()))


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an interruption or a user error, None for any other exception."""
    if _is_instance(error, _INTERRUPTED):
        return 128 + int(getattr(error, "signal_number", 0))
    codes = [code for type_name, code in _EXIT_CODES.items() if _is_instance(error, type_name)]
    return codes[0] if codes else 2 if isinstance(error, (ValueError, OSError, ImportError)) else None
