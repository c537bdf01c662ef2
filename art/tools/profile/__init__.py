"""Where the cost of a model is: counted from its modules, and measured, stage by stage."""

from art.tools.profile.count import StageCount, count_stages
from art.tools.profile.measure import StageMeasure, measure_stages
from art.tools.profile.profile import as_table, model_maker, profile
from art.tools.profile.stages import STAGES

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
