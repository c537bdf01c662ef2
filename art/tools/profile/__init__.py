"""Cost of a model by stage, counted from its modules and measured on a device: ``art profile``."""

from art.tools.profile.count import STAGES, StageCount, count_stages
from art.tools.profile.measure import StageMeasure, as_table, measure_stages, model_maker, profile

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
