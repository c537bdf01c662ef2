"""The model in a process of its own: a clip that crashes a decoder or takes too long ends that process, and not the
page; and Ctrl-C need not wait for either."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from art.tools.serve.limits import Asking, Refused

_BROKEN = (
    "Something went wrong here while your clip was looked at. The program that shows this page says more, where it was "
    "started."
)


class Analyst:
    """Loads a model once and looks at one clip after the other.

    Args:
        checkpoint: a checkpoint, or the folder of a run.
        device: "auto", "cpu", "cuda" and so on.
        timeout: seconds after which a clip is given up.
        work: what the process does; None: look at clips with the model.
    """

    def __init__(
        self,
        checkpoint: Path,
        asking: Asking,
        *,
        device: str = "auto",
        timeout: float = 300.0,
        work: Callable[[Connection, Path, str, Asking], None] | None = None,
    ) -> None:
        self._work, self._arguments = work or _work, (checkpoint.absolute(), device, asking)
        self._timeout = timeout
        self._closed = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> dict[str, Any]:
        """Load the model, and say what it is: see :func:`.answer.describe`.

        Raises:
            ValueError, OSError, ImportError: as :func:`art.load_model` and :func:`art.train.runtime.resolve_device`.
            RuntimeError: the process ended.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=self._work, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            kind, said = self._connection.recv()
        except EOFError as error:
            self._stop()
            raise RuntimeError("the process that loads the model ended; what it said stands above") from error
        if kind == "unfit":
            self._stop()
            raise said
        return dict(said)

    def answer(self, clip: Path, out: Path, step: Callable[[str], None]) -> dict[str, Any]:
        """What :func:`.answer.answer_clip` gives. Blocks; one clip at a time.

        Raises:
            Refused: as there; or the clip took too long, or ended the process. The next clip gets a new one.
        """
        if self._process is None and not self._closed:
            self.start()
        connection = self._connection
        if self._closed or connection is None:
            raise Refused("This page is being closed.")
        end = time.monotonic() + self._timeout
        try:
            connection.send((clip, out))
            while connection.poll(max(0.0, end - time.monotonic())):
                kind, said = connection.recv()
                if kind == "step":
                    step(said)
                elif kind == "answer":
                    return dict(said)
                else:
                    raise Refused(said)
        except (EOFError, OSError) as error:
            self._stop()
            raise Refused(_BROKEN) from error
        self._stop()
        raise Refused(f"It took longer than {self._timeout:g} s to look at your clip, which is the limit here.")

    def close(self) -> None:
        """End the process, whatever it is doing. May be called from another thread than the rest."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _stop(self) -> None:
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None


def _work(connection: Connection, checkpoint: Path, device: str, asking: Asking) -> None:
    """What the process does, until its connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    from art.data.parallel import end_with_parent
    from art.tools.serve.answer import answer_clip, describe

    end_with_parent()
    try:
        from art.data.prepare.reencode import check_encoder
        from art.eval.evaluate import find_checkpoint
        from art.model.pretrained import load_model
        from art.train.runtime import resolve_device

        check_encoder()
        chosen = resolve_device(device)
        model = load_model(find_checkpoint(checkpoint)).to(chosen)
    except (ValueError, OSError, ImportError) as error:
        error.__cause__ = error.__context__ = None  # may be of a kind that does not travel
        connection.send(("unfit", error))
        return
    connection.send(("ready", describe(model, chosen)))
    with suppress(EOFError):
        while True:
            clip, out = connection.recv()
            os.chdir(clip.parent)  # so that nothing that is said or written names a path of this machine
            try:
                said = answer_clip(model, Path(clip.name), out, asking, lambda text: connection.send(("step", text)))
                connection.send(("answer", said))
            except Refused as refused:
                connection.send(("refused", str(refused)))
            except Exception:
                traceback.print_exc(file=sys.stderr)
                connection.send(("broken", _BROKEN))
            finally:
                os.chdir("/")
