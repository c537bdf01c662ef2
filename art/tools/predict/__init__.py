"""Predictions for many clips, ``art predict``: from files, folders, tables, lists and shards, to Parquet."""

from art._deprecated import renamed_names
from art.data.inputs import Item, Source, open_inputs
from art.tools.predict.predictor import Answer, ClipPredictor, PredictionSettings

__all__ = ["Answer", "ClipPredictor", "Item", "PredictionSettings", "Source", "open_inputs"]

__getattr__ = renamed_names(__name__, {"find_sources": "open_inputs"})
