"""What a model looked at in a clip: arrays, figures, a film."""

from .explanation import Explanation, Query, explain
from .figures import contact_sheet, probability_figure, saliency_figure
from .film import write_film
from .write import explain_to_folder

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
