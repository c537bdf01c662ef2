"""Figures and the HTML report of an evaluation: response maps, tracklets, training curves, and confusions."""

from art.eval.report.confusion import PairExamples, collect_pairs, confusion_figure, most_confused
from art.eval.report.curves import comparison_figure, training_curves
from art.eval.report.localization import Localization, measure_localization
from art.eval.report.report import write_report
from art.eval.report.samples import SampleClip, collect_samples
from art.eval.report.tracklets import map_peak, overlay, tracklet_sheet

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
