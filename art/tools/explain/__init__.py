"""What a model looked at in a clip: arrays, figures, a film."""

from art.tools.explain.explanation import Explanation, Query, explain
from art.tools.explain.figures import contact_sheet, probability_figure, saliency_figure
from art.tools.explain.film import write_film
from art.tools.explain.write import explain_to_folder

__all__ = [
    "Explanation",
    "Query",
    "contact_sheet",
    "explain",
    "explain_to_folder",
    "probability_figure",
    "saliency_figure",
    "write_film",
]
