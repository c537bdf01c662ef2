"""Predictions for many clips, ``art predict``: from files, folders, tables, lists and shards, to Parquet."""

from art.data.inputs import Item, Source, find_sources
from art.tools.predict.predictor import Answer, ClipPredictor, PredictionSettings

__all__ = ["Answer", "ClipPredictor", "Item", "PredictionSettings", "Source", "find_sources"]
