"""``art serve``: a local web page to try a model on a clip.

The sample clips in ``samples.zip`` are six test clips of the embedded dataset ``motion``, as rendered by
``art prepare motion`` with seed 0; ``python docs/serve_material.py samples --data DIR`` writes the file. The movements
are motion capture recordings from the PyPI package ``pybullet``; figure, cameras and colors are rendered by
:mod:`art.data.motion`.
"""

from art._deprecated import renamed_names
from art.tools.serve.jobs import Limits, Refused, RequestOptions
from art.tools.serve.server import ServeSettings, serve

__all__ = ["Limits", "Refused", "RequestOptions", "ServeSettings", "serve"]

__getattr__ = renamed_names(__name__, {"Asking": "RequestOptions"})
