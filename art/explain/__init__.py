"""What a model looked at in a clip: arrays, figures, a film."""

from .explanation import Explanation, Query, explain

__all__ = ["Explanation", "Query", "explain"]
