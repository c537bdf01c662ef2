"""What a process may do in place of looking at clips with a model. Imports nothing that takes long."""

import os
import time


def work(connection, checkpoint, device, asking):
    """Does what the name of each clip says."""
    if checkpoint.name == "unfit":
        connection.send(("unfit", ValueError("it is unfit")))
        return
    if checkpoint.name == "dies":
        os._exit(3)
    connection.send(("ready", {"pid": os.getpid()}))
    while True:
        clip, _ = connection.recv()
        connection.send(("step", clip.name))
        if clip.name == "crash":
            os._exit(9)
        if clip.name == "hang":
            time.sleep(60)
        kind = {"bad": "refused", "good": "answer"}[clip.name]
        connection.send((kind, {"pid": os.getpid()} if kind == "answer" else "It is bad."))
