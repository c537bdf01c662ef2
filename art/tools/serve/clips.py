"""The clips that are looked at: one after the other, each in a folder of its own, none kept for long."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from art.tools.serve.limits import Refused

_log = logging.getLogger(__name__)

_LONGEST_NAME = 80  # characters
_UNSEEN = 30.0  # seconds after which nobody waits any more: a page asks twice a second, a phone in a pocket less often
_MOST_KEPT = 32  # answers
_CLEANED_EVERY = 1.0  # seconds
#: In names, what would lead to another folder, and what Matplotlib takes for a formula.
_NOT_IN_NAMES = str.maketrans({"/": "_", "\\": "_", "$": "_"})


class Answers(Protocol):
    """What looks at clips: :class:`.analyst.Analyst`."""

    def answer(self, clip: Path, out: Path, step: Callable[[str], None]) -> dict[str, Any]:
        """Blocks; raises Refused."""
        ...


class Busy(Refused):
    """Too many clips wait already."""


@dataclass
class Clip:
    """One clip that somebody brought.

    Attributes:
        id: nobody guesses it; whoever has it may see the answer.
        source: the file, removed once it has been looked at.
        out: the folder of the answer's files.
        state: how far it is.
        step: what is being done with it.
        answer: for the page, once it is done.
        message: why it was refused.
        seen: when its page last asked or sent something, on the monotonic clock.
        ended: when it was done or refused.
        wanted: False once its page has left: it is removed as soon as nothing works with it.
    """

    id: str
    source: Path
    out: Path
    state: Literal["arriving", "waiting", "working", "done", "refused"] = "arriving"
    step: str = ""
    answer: dict[str, Any] | None = None
    message: str | None = None
    seen: float = field(default_factory=time.monotonic)
    ended: float | None = None
    wanted: bool = True

    def end(self, answer: dict[str, Any] | None, message: str | None) -> None:
        """It is done, or refused."""
        self.state, self.answer, self.message = ("done" if message is None else "refused"), answer, message
        self.source.unlink(missing_ok=True)
        self.ended = time.monotonic()

    def told(self, ahead: int) -> dict[str, Any]:
        """What its page is told."""
        return {
            "state": self.state, "step": self.step, "ahead": ahead, "answer": self.answer, "message": self.message,
        }  # fmt: skip


class Clips:
    """All of them. To be used in one event loop only.

    Args:
        folder: where their files go.
        answers: what looks at them.
        keep: seconds for which an answer is kept after it was given.
        most_waiting: clips that arrive, wait or are looked at, at once.
    """

    def __init__(self, folder: Path, answers: Answers, *, keep: float, most_waiting: int) -> None:
        self._folder, self._answers, self._keep, self._most_waiting = folder, answers, keep, most_waiting
        self._clips: dict[str, Clip] = {}  # in the order in which they came
        self._more = asyncio.Event()

    def admit(self, name: str) -> Clip:
        """A place for a clip that arrives.

        Raises:
            Busy: there is none.
        """
        if sum(clip.ended is None for clip in self._clips.values()) >= self._most_waiting:
            raise Busy("Too many clips are waiting here already. Try again in a minute.")
        name = safe_name(name)
        folder = self._folder / secrets.token_urlsafe(16)
        (folder / "in").mkdir(parents=True, mode=0o700)
        clip = Clip(folder.name, folder / "in" / name, folder / "out")
        self._clips[clip.id] = clip
        return clip

    def submit(self, clip: Clip) -> None:
        """It is all there: look at it when it is its turn."""
        clip.state = "waiting"
        self._more.set()

    def find(self, id: str) -> Clip | None:
        """The clip of that id, whose page has just asked for it."""
        clip = self._clips.get(id)
        if clip is None or not clip.wanted:
            return None
        clip.seen = time.monotonic()
        return clip

    def ahead(self, clip: Clip) -> int:
        """How many are looked at before it."""
        before = [other for other in self._clips.values() if other.state in ("waiting", "working")]
        return before.index(clip) if clip in before else 0

    def remove(self, clip: Clip) -> None:
        """Remove its files, now or when nothing works with them any more."""
        clip.wanted = False
        if clip.state != "working":
            shutil.rmtree(clip.source.parent.parent, ignore_errors=True)
            self._clips.pop(clip.id, None)

    async def work(self) -> None:
        """Look at the clips, one by one, until cancelled."""
        while True:
            clip = next((clip for clip in self._clips.values() if clip.state == "waiting"), None)
            if clip is None:
                self._more.clear()
                await self._more.wait()
                continue
            clip.state = "working"
            answer, message = await asyncio.to_thread(self._look, clip)
            clip.end(answer, message)
            if not clip.wanted:
                self.remove(clip)

    def _look(self, clip: Clip) -> tuple[dict[str, Any] | None, str | None]:
        def step(text: str) -> None:
            clip.step = text

        try:
            return self._answers.answer(clip.source, clip.out, step), None
        except Refused as refused:
            return None, str(refused)
        except Exception:
            _log.exception("a clip could not be looked at")
            return None, "Something went wrong here. The program that shows this page says more, where it was started."

    async def clean(self) -> None:
        """Remove what is old and what nobody waits for, until cancelled."""
        while True:
            await asyncio.sleep(_CLEANED_EVERY)
            self.clean_now(time.monotonic())

    def clean_now(self, now: float) -> None:
        """The same, once."""
        ended = [clip for clip in self._clips.values() if clip.ended is not None]
        old = [clip for clip in ended if clip.ended is not None and now - clip.ended > self._keep]
        many = ended[: max(0, len(ended) - _MOST_KEPT)]
        idle = [clip for clip in self._clips.values() if clip.state in ("arriving", "waiting")]
        left = [clip for clip in idle if now - clip.seen > _UNSEEN]
        for clip in {clip.id: clip for clip in (*old, *many, *left)}.values():
            self.remove(clip)


def safe_name(name: str) -> str:
    """A name for a file, as near as can be to the one that it came with."""
    name = "".join(letter for letter in name.translate(_NOT_IN_NAMES) if letter.isprintable()).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    room = _LONGEST_NAME - len(dot + suffix) if len(suffix) <= 5 else 0
    name = f"{stem[:room]}{dot}{suffix}" if stem and room else name[:_LONGEST_NAME]
    while len(name.encode()) > 200:  # file systems count bytes
        name = name[1:]
    return name or "clip"
