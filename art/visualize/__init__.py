"""Pictures of what a model attends to and how well it does: response maps, tracklets, curves, the report."""

from .comparison import comparison_figure
from .confusion import confusion_figure, most_confused
from .curves import training_curves
from .localization import Localization, measure_localization
from .pairs import PairExamples, collect_pairs
from .report import write_report
from .response_maps import map_peak, overlay
from .samples import SampleClip, collect_samples
from .tracklets import tracklet_sheet

__all__ = [
    "Localization",
    "PairExamples",
    "SampleClip",
    "collect_pairs",
    "collect_samples",
    "comparison_figure",
    "confusion_figure",
    "map_peak",
    "measure_localization",
    "most_confused",
    "overlay",
    "tracklet_sheet",
    "training_curves",
    "write_report",
]
