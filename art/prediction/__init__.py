"""Predictions for many clips, ``art predict``: from files, folders, tables, lists and shards, to Parquet."""

from .predictor import Answer, ClipPredictor, PredictionSettings
from .sources import Item, Source, find_sources

__all__ = ["Answer", "ClipPredictor", "Item", "PredictionSettings", "Source", "find_sources"]
