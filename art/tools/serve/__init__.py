"""``art serve``: a local web page to try a model on a clip."""

from art.tools.serve.limits import Asking, Limits, Refused
from art.tools.serve.server import ServeSettings, serve

__all__ = ["Asking", "Limits", "Refused", "ServeSettings", "serve"]
