"""Programs of Python without the seconds that their imports take: one process has imported all, and forks for each.

``WarmPython(folder)`` has a folder ``bin`` with ``python``, ``art``, ``torchrun`` and the like. Each of them is
``warm_client.py``, which hands its arguments, its directory, its environment and its open files to the process here and
then waits for the process that is forked for it: signals go there, and what it ends with comes back.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).with_name("warm_client.py")
PROGRAMS = ("python", "art", "torchrun", "pytest", "tensorboard")
IMPORTED = (
    "art.cli", "art.model.art_model", "art.experiments", "art.tools.bank", "art.data.motion", "art.data.prepare.convert", "art.experiments.compare",
    "art.eval.score", "art.tools.explain", "art.tools.export", "art.tools.predict", "art.tools.profile", "art_kernels",
    "torch.distributed.run", "torch.utils.tensorboard", "matplotlib.pyplot", "torch._dynamo", "torch._export",
    "tokenizers.implementations", "networkx", "torch.onnx", "onnxscript.rewriter", "onnx.reference",
    "torch._inductor.utils",
)  # fmt: skip
SOCKET, HOLD = "socket", b"hold"
_SECONDS_TO_START = 60


class WarmPython:
    """The process, which those share that name the same folder, and the programs in its ``bin``.

    It ends when the last of them has let go, whether by :meth:`close` or because it was killed. To be made and closed
    by one at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self._hold = self._joined() or self._started(folder)

    def close(self) -> None:
        """Lets go of the process."""
        self._hold.close()

    def _joined(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.bin / SOCKET))
            connection.sendall(HOLD)
            if connection.recv(len(HOLD)) == HOLD:
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def _started(self, folder: Path) -> socket.socket:
        shutil.rmtree(self.bin, ignore_errors=True)
        self.bin.mkdir(parents=True)
        for name in PROGRAMS:
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{CLIENT.read_text()}")
            (self.bin / name).chmod(0o755)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment.pop("TRITON_INTERPRET", None)  # which the tests of kernels set, and no reader
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, str(self.bin)], env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _SECONDS_TO_START
        while process.poll() is None and time.monotonic() < deadline:
            connection = self._joined()
            if connection is not None:
                return connection
            time.sleep(0.05)
        process.kill()
        raise RuntimeError(f"no warm process: {(folder / 'log').read_text()}")


class Server:
    """Forks for each request, and tells its client how that ended."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        self._ends, self._end = os.pipe()
        os.set_blocking(self._end, False)
        signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._running: dict[int, socket.socket] = {}
        self._holders: set[socket.socket] = set()

    def serve(self) -> Request | None:
        """Returns what is to be done in each process that is forked, and None in this one, when nobody holds it."""
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, self._ends):
                selector.register(source, selectors.EVENT_READ)
            begun = False
            while self._holders or not begun:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        request = Request.received(self._listener.accept()[0])
                        if request is not None and self._taken(request, selector):
                            return request
                        begun |= bool(self._holders)
                    elif key.fileobj == self._ends:
                        os.read(self._ends, 512)
                        self._tell_ends(selector)
                    else:
                        self._left(key.fileobj, key.data, selector)
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        return None

    def _taken(self, request: Request, selector: selectors.BaseSelector) -> bool:
        """Whether this is the process that was forked for it."""
        if request.holds:
            self._holders.add(request.connection)
            selector.register(request.connection, selectors.EVENT_READ)
            request.connection.sendall(HOLD)
            return False
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for connection in (self._listener, *self._running.values(), *self._holders):
                connection.close()
            os.close(self._ends), os.close(self._end)
            return True
        request.close_files()
        print(f"{pid}: {request.told['program']} {' '.join(request.told['arguments'])[:160]!r}", flush=True)
        _tell(request.connection, f"pid {pid}")
        self._running[pid] = request.connection
        selector.register(request.connection, selectors.EVENT_READ, pid)
        return False

    def _left(self, connection: socket.socket, pid: int | None, selector: selectors.BaseSelector) -> None:
        """One that held this process has let go, or a client is gone, and with it what it asked for."""
        selector.unregister(connection)
        if pid is None:
            self._holders.discard(connection)
            connection.close()
        elif pid in self._running:
            os.kill(pid, signal.SIGKILL)

    def _tell_ends(self, selector: selectors.BaseSelector) -> None:
        while self._running:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            print(f"{pid}: {used.ru_utime + used.ru_stime:.2f} s of a core", flush=True)
            connection = self._running.pop(pid)
            if connection in [key.fileobj for key in selector.get_map().values()]:
                selector.unregister(connection)
            _tell(connection, f"end {os.waitstatus_to_exitcode(status)}")
            connection.close()


def _tell(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # a client that was killed hears nothing
        connection.sendall(f"{line}\n".encode())


class Request:
    """What a client wants to be run.

    Attributes:
        connection: to the client, which takes its end for the end of the program.
        told: "program", "arguments", "directory", "environment", and "files", the numbers of its open files.
        files: the same files, under the numbers that they have here.
    """

    def __init__(self, connection: socket.socket, told: dict[str, Any], files: list[int]) -> None:
        self.connection, self.told, self.files = connection, told, files

    @classmethod
    def received(cls, connection: socket.socket) -> Request | None:
        """Reads it: four bytes with the length, with them the files, then JSON. None: its client was killed."""
        files = array.array("i")
        start, messages, *_ = connection.recvmsg(4, socket.CMSG_SPACE(64 * files.itemsize))
        if start == HOLD:
            return cls(connection, {}, [])
        for _, _, content in messages:
            files.frombytes(content)
        length = int.from_bytes(start, "big")
        text = b""
        while len(text) < length and (part := connection.recv(length - len(text))):
            text += part
        if len(start) == 4 and len(text) == length:
            return cls(connection, json.loads(text), list(files))
        for file in files:
            os.close(file)
        connection.close()
        return None

    @property
    def holds(self) -> bool:
        """Whether it asks for nothing but that the process stays."""
        return not self.told

    def close_files(self) -> None:
        """In the process that goes on."""
        for file in self.files:
            os.close(file)

    def take_over(self) -> None:
        """Makes this process what the client was: files, directory, environment, signals."""
        high = [(self._above(file), number) for file, number in zip(self.files, self.told["files"], strict=True)]
        self.close_files()
        kept = self._above(self.connection.detach())
        os.closerange(3, min(kept, *(file for file, _ in high)))
        for file, number in high:
            os.dup2(file, number, inheritable=True)
            os.close(file)
        os.chdir(self.told["directory"])
        os.environ.clear()
        os.environ.update(self.told["environment"])
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @staticmethod
    def _above(file: int) -> int:
        import fcntl

        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 512)


def run(request: Request) -> None:
    """Runs the program as the interpreter would, and ends this process."""
    request.take_over()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.executable = str(Path(sys.argv[1]) / "python")
    if "multiprocessing.spawn" in sys.modules:
        sys.modules["multiprocessing.spawn"].set_executable(sys.executable)
    random.seed()
    sys.modules["numpy"].random.seed()
    code: object = 0
    try:
        _run_program(request.told["program"], request.told["arguments"])
    except SystemExit as ending:
        code = ending.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run_program(program: str, arguments: list[str]) -> None:
    """``python …``, or a program that was installed beside it."""
    if program != "python":
        script = str(Path(sysconfig.get_path("scripts")) / program)
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
        return
    first, *rest = arguments or ["-"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in ("-c", "-"):
        text, rest = (rest[0], rest[1:]) if first == "-c" else (sys.stdin.read(), rest)
        sys.argv, sys.path[0] = [first, *rest], ""
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(text, "<string>" if first == "-c" else "<stdin>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def import_all() -> None:
    """What commands spend their first seconds with. No thread may come of it: a fork has but one."""
    for name in IMPORTED:
        importlib.import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    if len(threads) > 1:
        raise RuntimeError(f"{len(threads)} threads after the imports: a fork would have one of them")
    gc.freeze()


if __name__ == "__main__":
    import_all()
    forked = Server(Path(sys.argv[1])).serve()
    if forked is not None:
        run(forked)
