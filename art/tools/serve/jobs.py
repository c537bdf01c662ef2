"""Uploaded clips: the limits on each, the queue, and how long files are kept. Imports neither torch nor FFmpeg."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

_log = logging.getLogger(__name__)

#: Number of bytes that :func:`container_format` needs.
SIGNATURE_BYTES = 12
INTERNAL_ERROR = "Something went wrong while processing your clip. See the server's terminal for details."

#: Signatures of the accepted containers: (offset, bytes, FFmpeg's name). Other files are never opened, because FFmpeg
#: also reads playlists and session descriptions, which make it open further files and addresses.
_SIGNATURES = (
    *((4, kind, "mov") for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
)
_MAX_NAME = 80  # characters
_MAX_NAME_BYTES = 200  # file systems limit the number of bytes
_ABANDONED = 30.0  # seconds without a request after which a client is gone; phones throttle pages in the background
_UPLOAD_GRACE = 10.0  # seconds
_UPLOAD_RATE = 64_000  # minimum bytes per second of an upload, on average after the grace period
_MAX_RESULTS = 32
_CLEANUP_INTERVAL = 1.0  # seconds
_SEPARATORS = str.maketrans({"/": "_", "\\": "_"})


class Refused(Exception):
    """A clip that is not processed. The message is shown to the user."""


class QueueFull(Refused):
    """Too many clips are waiting."""


class UploadTooSlow(Refused):
    """The upload is slower than the minimum rate."""


@dataclass(frozen=True)
class Limits:
    """Limits on each clip.

    Attributes:
        megabytes: File size, in units of 10⁶ bytes.
        seconds: Time of the last frame.
        frames: Number of frames; all of them are drawn, at any frame rate.
        megapixels: Frame size, in units of 10⁶ pixels.

    Raises:
        ValueError: A limit is not above 0.
    """

    megabytes: float = 64.0
    seconds: float = 30.0
    frames: int = 1800
    megapixels: float = 9.0

    def __post_init__(self) -> None:
        for name in (limit.name for limit in fields(self)):
            if not getattr(self, name) > 0:
                raise ValueError(f"--max-{name}: got {getattr(self, name)}, expected more than 0")

    @property
    def bytes(self) -> int:
        """File size in bytes."""
        return round(self.megabytes * 1e6)

    def too_large(self, name: str, size: int | None = None) -> Refused:
        """Return the error for a file that exceeds the size limit."""
        actual = "" if size is None else f" ({size / 1e6:.1f} MB)"
        return Refused(
            f"“{name}” is larger than the limit of {self.megabytes:g} MB{actual}. Trim the clip, or save it at a lower "
            "resolution."
        )


@dataclass(frozen=True)
class RequestOptions:
    """How each clip is processed.

    Attributes:
        top_k: Number of classes in the result.
        timeline_points: Number of clip prefixes to classify; 0 omits the chart over time.
        limits: Limits on the clip.

    Raises:
        ValueError: A number is out of range.
    """

    top_k: int = 5
    timeline_points: int = 24
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("timeline_points", 0)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag}: got {getattr(self, name)}, expected at least {least}")


def container_format(signature: bytes) -> str | None:
    """Return FFmpeg's name of the container that starts with ``signature``, or None if it is not accepted."""
    for offset, magic, name in _SIGNATURES:
        if signature[offset : offset + len(magic)] == magic and (name != "avi" or signature.startswith(b"RIFF")):
            return name
    return None


def check_signature(signature: bytes, name: str) -> None:
    """Raise Refused unless a file that starts with ``signature`` is in an accepted container."""
    if not signature:
        raise Refused(f"“{name}” is empty (0 bytes).")
    if container_format(signature) is None:
        raise Refused(f"“{name}” is not a supported video. Supported formats are MP4, MOV, WebM, MKV and AVI.")


class Predictor(Protocol):
    """Processes one clip at a time: :class:`.server.WorkerProcess`."""

    def predict(self, clip: Path, out: Path, report: Callable[[str], None]) -> dict[str, Any]:
        """Return the result for the page, and write its files to ``out``. Blocks.

        Args:
            report: Called with the name of each step.

        Raises:
            Refused: The clip cannot be processed.
        """
        ...


@dataclass
class Job:
    """One uploaded clip.

    Attributes:
        id: Unguessable; whoever has it may see the result.
        source: The clip, removed when it has been processed.
        out: Directory of the result's files.
        state: Progress of the job.
        step: The current step of the work.
        result: The result for the page, when done.
        message: The reason, when refused.
        last_seen: Time of the client's last request, on the monotonic clock.
        started: Time at which the upload began.
        received: Number of bytes uploaded so far.
        pending: Waits for the next part of the upload; canceled if the job is removed.
        ended: Time at which it was done or refused.
        removed: Whether its client has left; its files are deleted as soon as they are not in use.
    """

    id: str
    source: Path
    out: Path
    state: Literal["uploading", "waiting", "working", "done", "refused"] = "uploading"
    step: str = ""
    result: dict[str, Any] | None = None
    message: str | None = None
    last_seen: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    pending: asyncio.Future[bytes | None] | None = None
    ended: float | None = None
    removed: bool = False

    @property
    def upload_deadline(self) -> float:
        """Time until which the next part of the upload must have arrived."""
        return self.started + _UPLOAD_GRACE + self.received / _UPLOAD_RATE

    def finish(self, result: dict[str, Any] | None, message: str | None) -> None:
        """Store the result or the reason for refusal, and delete the clip."""
        self.state, self.result, self.message = ("done" if message is None else "refused"), result, message
        self.source.unlink(missing_ok=True)
        self.ended = time.monotonic()


class JobQueue:
    """All jobs. They are processed in order, one at a time. Use it from one event loop only.

    Args:
        directory: Parent of the directory of each job.
        predictor: Processes the clips.
        keep: Seconds for which a result is kept.
        max_waiting: Maximum number of jobs that are uploading, waiting or working.
    """

    def __init__(self, directory: Path, predictor: Predictor, *, keep: float, max_waiting: int) -> None:
        self._directory, self._predictor, self._keep, self._max_waiting = directory, predictor, keep, max_waiting
        self._jobs: dict[str, Job] = {}  # in order of arrival
        self._submitted = asyncio.Event()

    def create(self, name: str) -> Job:
        """Create a job for a clip that is about to be uploaded.

        Raises:
            QueueFull: Too many jobs have not ended.
        """
        if sum(job.ended is None for job in self._jobs.values()) >= self._max_waiting:
            raise QueueFull("Too many clips are waiting. Try again in a minute.")
        directory = self._directory / secrets.token_urlsafe(16)
        (directory / "in").mkdir(parents=True, mode=0o700)
        job = Job(directory.name, directory / "in" / safe_name(name), directory / "out")
        self._jobs[job.id] = job
        return job

    def submit(self, job: Job) -> None:
        """Queue a job whose clip has been uploaded."""
        job.state, job.last_seen = "waiting", time.monotonic()
        self._submitted.set()

    def find(self, id: str) -> Job | None:
        """Return a job by its id, and note that its client is present."""
        job = self._jobs.get(id)
        if job is None or job.removed:
            return None
        job.last_seen = time.monotonic()
        return job

    def status(self, job: Job) -> dict[str, Any]:
        """Return the status of a job for its client."""
        queue = [other for other in self._jobs.values() if other.state in ("waiting", "working")]
        ahead = queue.index(job) if job in queue else 0
        return {"state": job.state, "step": job.step, "ahead": ahead, "result": job.result, "message": job.message}

    def remove(self, job: Job) -> None:
        """Delete a job's files, now or when its work has ended."""
        job.removed = True
        if job.pending is not None:
            job.pending.cancel()
        if job.state != "working":
            shutil.rmtree(job.source.parent.parent, ignore_errors=True)
            self._jobs.pop(job.id, None)

    async def run(self) -> None:
        """Process the jobs until canceled."""
        while True:
            job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
            if job is None:
                self._submitted.clear()
                await self._submitted.wait()
                continue
            job.state = "working"
            job.finish(*await asyncio.to_thread(self._process, job))
            if job.removed:
                self.remove(job)

    def _process(self, job: Job) -> tuple[dict[str, Any] | None, str | None]:
        def report(step: str) -> None:
            job.step = step

        try:
            return self._predictor.predict(job.source, job.out, report), None
        except Refused as refused:
            return None, str(refused)
        except Exception:
            _log.exception("a clip could not be processed")
            return None, INTERNAL_ERROR

    async def clean_up_periodically(self) -> None:
        """Call :meth:`clean_up` every second until canceled."""
        while True:
            await asyncio.sleep(_CLEANUP_INTERVAL)
            self.clean_up(time.monotonic())

    def clean_up(self, now: float) -> None:
        """Remove expired results, the oldest results if there are too many, and jobs whose client is gone or uploads
        more slowly than :data:`_UPLOAD_RATE`, so that a few bytes now and then do not occupy the queue."""
        ended = [job for job in self._jobs.values() if job.ended is not None]
        expired = [job for job in ended if job.ended is not None and now - job.ended > self._keep]
        oldest = ended[: max(0, len(ended) - _MAX_RESULTS)]
        jobs = self._jobs.values()
        slow = [job for job in jobs if job.state == "uploading" and now > job.upload_deadline]
        abandoned = [job for job in jobs if job.state == "waiting" and now - job.last_seen > _ABANDONED]
        for job in {job.id: job for job in (*expired, *oldest, *slow, *abandoned)}.values():
            self.remove(job)


def safe_name(name: str) -> str:
    """Turn a client's file name into a safe one that is as similar as possible."""
    name = "".join(letter for letter in name.translate(_SEPARATORS) if letter.isprintable()).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    max_stem = _MAX_NAME - len(dot + suffix) if len(suffix) <= 5 else 0
    name = f"{stem[:max_stem]}{dot}{suffix}" if stem and max_stem else name[:_MAX_NAME]
    while len(name.encode()) > _MAX_NAME_BYTES:
        name = name[1:]
    return name or "clip"
