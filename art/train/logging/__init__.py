"""Where the numbers of a training go beside ``metrics.jsonl``: one file each, behind one protocol."""

from art.train.logging.interface import Observer
from art.train.logging.opening import open_observers, require_observers

__all__ = ["Observer", "open_observers", "require_observers"]
