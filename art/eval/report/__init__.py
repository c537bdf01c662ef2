"""Pictures of what a model attends to and how well it does: response maps, tracklets, curves, the report."""

from art.eval.report.comparison import comparison_figure
from art.eval.report.confusion import confusion_figure, most_confused
from art.eval.report.curves import training_curves
from art.eval.report.localization import Localization, measure_localization
from art.eval.report.pairs import PairExamples, collect_pairs
from art.eval.report.report import write_report
from art.eval.report.response_maps import map_peak, overlay
from art.eval.report.samples import SampleClip, collect_samples
from art.eval.report.tracklets import tracklet_sheet

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
