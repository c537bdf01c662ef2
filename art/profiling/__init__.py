"""Where the cost of a model is: counted from its modules, and measured, stage by stage."""

from .count import StageCount, count_stages
from .measure import StageMeasure, measure_stages
from .profile import as_table, model_maker, profile
from .stages import STAGES

__all__ = [
    "STAGES",
    "StageCount",
    "StageMeasure",
    "as_table",
    "count_stages",
    "measure_stages",
    "model_maker",
    "profile",
]
