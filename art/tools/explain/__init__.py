"""Explain a model's prediction for a clip: arrays, figures, and a film."""

from art._deprecated import renamed_names
from art.tools.explain.explanation import Explanation, Query, explain
from art.tools.explain.figures import contact_sheet, explain_to_directory, probability_figure, saliency_figure
from art.tools.explain.film import write_film

__all__ = [
    "Explanation",
    "Query",
    "contact_sheet",
    "explain",
    "explain_to_directory",
    "probability_figure",
    "saliency_figure",
    "write_film",
]

__getattr__ = renamed_names(__name__, {"explain_to_folder": "explain_to_directory"})
