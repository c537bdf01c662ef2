"""Predictions for many clips, ``art predict``: from files, directories, tables, lists and shards, to Parquet."""

from art._deprecated import renamed_names
from art.data.inputs import Item, Source, open_inputs
from art.tools.predict.predictor import ClipPredictor, Prediction, PredictionSettings

__all__ = ["ClipPredictor", "Item", "Prediction", "PredictionSettings", "Source", "open_inputs"]

__getattr__ = renamed_names(__name__, {"Answer": "Prediction", "find_sources": "open_inputs"})
