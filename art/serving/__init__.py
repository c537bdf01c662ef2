"""``art serve``: a local web page to try a model on a clip."""

from .limits import Asking, Limits, Refused
from .server import ServeSettings, serve

__all__ = ["Asking", "Limits", "Refused", "ServeSettings", "serve"]
