"""Which block sizes are fastest on this device: timed once for each shape, when asked for, and kept on disk.

Off, unless the environment has ART_KERNELS_AUTOTUNE=1 or the code runs inside `autotune()`. Off, no file is touched,
nothing is timed, and a kernel runs with the sizes of its table: the same bits in every run.

On, the first call of a kernel with a new shape times the table's sizes and the other candidates. The fastest are
written to `tuning-v1.json`, in ART_KERNELS_CACHE or the user's cache folder. An entry holds for one kernel's source,
device, Triton version and shape; entries that hold no longer are left alone. With the same file the choice is the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

if sys.platform != "win32":
    import fcntl

ENVIRONMENT_VARIABLE = "ART_KERNELS_AUTOTUNE"
CACHE_VARIABLE = "ART_KERNELS_CACHE"
FILE_NAME = "tuning-v1.json"

#: The default stays where it takes at most so many times the fastest candidate's time: below that it is noise.
TOLERANCE = 1.02

T = TypeVar("T", bound=NamedTuple)


class _Key(NamedTuple):
    """What a choice holds for."""

    kernel: str
    fingerprint: str
    device: str
    capability: str
    triton: str
    shape: tuple[tuple[str, int | str | bool], ...]

    def fields(self) -> dict[str, Any]:
        return {**self._asdict(), "shape": dict(self.shape)}


@dataclass(frozen=True)
class _Result(Generic[T]):
    choice: T
    milliseconds: float
    default: T
    default_milliseconds: float


#: By the `autotune` blocks that are open, the innermost last.
_switches: dict[object, bool] = {}
_memory: dict[_Key, Any] = {}
#: One kernel is timed at a time, whichever thread asks.
_lock = threading.RLock()
#: Files that could not be written.
_warned: set[str] = set()


@contextmanager
def autotune(enabled: bool = True) -> Iterator[None]:
    """Switch tuning on, or off, inside a `with` block; goes before ART_KERNELS_AUTOTUNE.

    It counts for the whole process, not for the thread alone: backward passes run in threads of autograd's own.

    Args:
        enabled: False keeps to the table inside the block.

    Examples:
        >>> from art_kernels import autotune
        >>> with autotune(False):  # the table's block sizes, whatever the environment says
        ...     pass
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"autotune: enabled is {enabled!r}, expected True or False")
    block = object()
    _switches[block] = enabled
    try:
        yield
    finally:
        del _switches[block]


def enabled() -> bool:
    """Whether tuning is on.

    Raises:
        ValueError: ART_KERNELS_AUTOTUNE is neither 0 nor 1, and no `autotune` block is open.
    """
    blocks = list(_switches.values())
    if blocks:
        return blocks[-1]
    value = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{ENVIRONMENT_VARIABLE}={value} is no switch, expected 1 (tune), 0 or nothing (do not)")
    return value == "1"


def best(
    kernel: str,
    device: torch.device,
    shape: Mapping[str, int | str | bool],
    default: T,
    candidates: Sequence[T],
    run: Callable[[T], object],
    *,
    fingerprint: str,
) -> T:
    """The fastest block sizes of a kernel on a device.

    Where nothing may be timed (while a CUDA graph is captured, or a compiler traces) the sizes found earlier, or else
    the default, are given; so they are after the device had no memory for the timing.

    Args:
        kernel: its name.
        device: where it runs; on any but a GPU the default is given at once.
        shape: all that the speed and the candidates depend on, by name: sizes, dtype, options. Each other shape is
            timed anew, so that a size which varies from call to call should be rounded.
        default: the table's sizes: a `NamedTuple` of ints and bools.
        candidates: other sizes; the default may be among them.
        run: launches the kernel with the sizes it is given. It is called many times, and has to leave its inputs alone;
            its outputs are those of any candidate, so that the launch itself comes after.
        fingerprint: of the kernel's source (`fingerprint`); results of another source are not used.

    Returns:
        The default or one of the candidates.

    Raises:
        Exception: what running the default raises, or what a candidate raises that is neither a failed compilation nor
            too much of the device's resources.
    """
    if not enabled() or device.type != "cuda":
        return default
    key = _Key(kernel, fingerprint, *_device_facts(device), _triton_version(), tuple(shape.items()))
    choice: T | None = _memory.get(key)
    if choice is not None:
        return choice
    with _lock:
        return _find(key, device, tuple(dict.fromkeys((default, *candidates))), run)


@functools.cache
def fingerprint(*kernels: Any) -> str:
    """Of the sources of `triton.jit` functions and of all that they call: 16 hexadecimal digits."""
    keys = [getattr(kernel, "cache_key", "interpreted") for kernel in kernels]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def milliseconds(launch: Callable[[], object], device: torch.device) -> float:
    """Median time of a launch on a GPU, its caches emptied before each."""
    from triton.testing import do_bench

    with torch.cuda.device(device):
        return float(do_bench(launch, warmup=10, rep=50, return_mode="median"))


def cache_file() -> Path:
    """Where results are kept.

    Raises:
        OSError: the user has no home folder, and the environment names none.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    parent = os.environ.get("XDG_CACHE_HOME")
    try:
        if folder:
            return Path(folder).expanduser() / FILE_NAME
        return (Path(parent) if parent else Path.home() / ".cache") / "art_kernels" / FILE_NAME
    except RuntimeError as error:
        raise OSError(f"{error}; set {CACHE_VARIABLE} to a folder") from error


def summary() -> str:
    """For the report: whether tuning is on, why, and where its results are kept."""
    try:
        state = "on" if enabled() else "off, block sizes are those of the tables"
    except ValueError as error:
        state = f"refused: {error}"
    try:
        return f"{state}; results in {cache_file()}"
    except OSError as error:
        return f"{state}; results are not kept: {error}"


def _find(key: _Key, device: torch.device, choices: tuple[T, ...], run: Callable[[T], object]) -> T:
    """From memory (another thread may just have put it there), from the file, or by timing; `choices[0]` is the
    default."""
    if key in _memory:
        return _memory[key]
    _check_shape(key)
    if len(choices) == 1:
        return choices[0]
    choice = _kept(key, choices)
    if choice is None:
        if not _may_time():
            return choices[0]  # and remember nothing: a later call may time
        try:
            choice = _keep(key, _fastest(choices, run, device), choices)
        except torch.OutOfMemoryError:
            _warn(f"{key.kernel}: {key.device} has no memory left to time it in; the table is used")
            choice = choices[0]
    _memory[key] = choice
    return choice


def _check_shape(key: _Key) -> None:
    for name, value in key.shape:
        if not isinstance(value, (int, str)):
            raise TypeError(f"{key.kernel}: shape[{name!r}] is {value!r}, expected an int, a str or a bool")


def _fastest(choices: tuple[T, ...], run: Callable[[T], object], device: torch.device) -> _Result[T]:
    default = choices[0]
    times: dict[T, float] = {}
    for choice in choices:
        try:
            times[choice] = milliseconds(functools.partial(run, choice), device)
        except Exception as error:
            if choice == default or not _cannot_run(error):
                raise
    fastest = min(times, key=times.__getitem__)
    if times[default] <= TOLERANCE * times[fastest]:
        fastest = default
    return _Result(fastest, times[fastest], default, times[default])


def _cannot_run(error: Exception) -> bool:
    """Whether a candidate is at fault: it does not compile, or asks for more than the device has."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    if isinstance(error, (CompilationError, OutOfResources, PTXASError)):
        return True
    return isinstance(error, RuntimeError) and "PassManager" in str(error)


def _may_time() -> bool:
    from torch._guards import detect_fake_mode

    traced = torch.compiler.is_compiling() or detect_fake_mode() is not None
    return not (traced or torch.cuda.is_current_stream_capturing())


def _device_facts(device: torch.device) -> tuple[str, str]:
    return _facts_of_gpu(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _facts_of_gpu(index: int) -> tuple[str, str]:
    major, minor = torch.cuda.get_device_capability(index)
    return torch.cuda.get_device_name(index), f"{major}.{minor}"


@functools.cache
def _triton_version() -> str:
    import triton

    return triton.__version__


def _kept(key: _Key, choices: tuple[T, ...]) -> T | None:
    """The choice in the file; None where there is none that can be used."""
    try:
        path = cache_file()
        entries = _read(path)
    except (OSError, ValueError):
        return None  # `_keep` tells, if it comes to that
    choice = _choice(entries, key, choices)
    if choice is None and any(_is_for(entry, key) for entry in entries):
        _warn(f"{path}: the entry of {key.kernel} for {dict(key.shape)} names none of its candidates; ignored")
    return choice


def _keep(key: _Key, result: _Result[T], choices: tuple[T, ...]) -> T:
    """Add a result to the file; gives the choice that stands there then.

    Where another process has timed the same in the meantime its result stays, so that all of them take one choice.
    """
    name = ""
    try:
        path = cache_file()
        name = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            entries = _read_or_set_aside(path)
            earlier = _choice(entries, key, choices)
            if earlier is not None:
                return earlier
            _write(path, [*(entry for entry in entries if not _is_for(entry, key)), _entry(key, result)])
    except OSError as error:
        if name not in _warned:
            _warned.add(name)
            _warn(f"tuning results are kept in memory only: {error}")
    return result.choice


def _entry(key: _Key, result: _Result[T]) -> dict[str, Any]:
    return {
        **key.fields(),
        "choice": result.choice._asdict(),
        "milliseconds": result.milliseconds,
        "default": result.default._asdict(),
        "default_milliseconds": result.default_milliseconds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _is_for(entry: Any, key: _Key) -> bool:
    fields = key.fields()
    return isinstance(entry, dict) and _text({name: entry.get(name) for name in fields}) == _text(fields)


def _choice(entries: list[Any], key: _Key, choices: tuple[T, ...]) -> T | None:
    """What the first usable entry names. Only what could have been written is used: one of the candidates."""
    named = {_text(choice._asdict()): choice for choice in choices}
    usable = (named.get(_text(entry.get("choice"))) for entry in entries if _is_for(entry, key))
    return next((choice for choice in usable if choice is not None), None)


def _text(value: Any) -> str:
    """JSON tells True from 1 and 16 from 16.0, which `==` does not."""
    return json.dumps(value, sort_keys=True)


def _read(path: Path) -> list[Any]:
    """The entries; none where there is no file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        raise ValueError("no list of entries")
    return content["entries"]


def _read_or_set_aside(path: Path) -> list[Any]:
    """Likewise, under the lock: there a file that cannot be parsed is moved away, never over an earlier one."""
    try:
        return _read(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.broken")
        count = 1
        while aside.exists():
            count += 1
            aside = path.with_name(f"{path.name}.broken{count}")
        path.replace(aside)
        _warn(f"{path} cannot be parsed ({error}): moved to {aside.name}, and begun anew")
        return []


def _write(path: Path, entries: list[Any]) -> None:
    """All at once: who reads meanwhile sees the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(json.dumps({"entries": entries}, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. In a file of its own, because the other is replaced, and its lock with it."""
    with path.with_name(f"{path.name}.lock").open("a") as file:
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks: of two results written at once one is timed again
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
