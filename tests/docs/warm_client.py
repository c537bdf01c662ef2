"""One of the programs in ``bin``: has ``warm.py`` run what it was asked for, and ends as that does.

A program that cannot be run so, such as ``python`` with an option of the interpreter, is run as usual.
"""

import array
import json
import os
import signal
import socket
import sys
from pathlib import Path


def open_files():
    """The numbers of the files that this process was given."""
    numbers = []
    for file in list(Path("/proc/self/fd").iterdir()):
        try:
            os.fstat(int(file.name))
        except OSError:
            continue  # the listing itself
        numbers.append(int(file.name))
    return sorted(numbers)


def end(code):
    if code < 0:  # by a signal, which is how this one has to end too
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main():
    here = Path(sys.argv[0])
    program, arguments = here.name, sys.argv[1:]
    while program == "python" and arguments[:1] in (["-u"], ["-B"], ["-s"]):
        arguments = arguments[1:]
    if program == "python" and (not arguments or (arguments[0][:1] == "-" and arguments[0] not in ("-", "-c", "-m"))):
        os.execv(sys.executable, [sys.executable, *arguments])
    files = open_files()
    request = {
        "program": program,
        "arguments": arguments,
        "directory": str(Path.cwd()),
        "environment": dict(os.environ),
        "files": files,
    }
    text = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(here.parent / "socket"))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([len(text).to_bytes(4, "big")], [rights])
    connection.sendall(text)
    answers = connection.makefile("r")
    pid = int(answers.readline().split()[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    last = answers.readline().split()
    end(int(last[1]) if last else 1)


main()
