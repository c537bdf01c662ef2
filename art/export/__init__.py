"""Trained models as files that run without this package: ``torch.export`` programs and ONNX."""

from .checkpoint import export_checkpoint
from .facts import read_facts
from .model import FORMATS, Exported, export_model
from .program import OUTPUTS

__all__ = ["FORMATS", "OUTPUTS", "Exported", "export_checkpoint", "export_model", "read_facts"]
