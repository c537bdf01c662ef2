"""Trained models as files that run without this package: ``torch.export`` programs and ONNX."""

from art.tools.export.checkpoint import export_checkpoint
from art.tools.export.facts import read_facts
from art.tools.export.model import FORMATS, Exported, export_model
from art.tools.export.program import OUTPUTS

__all__ = ["FORMATS", "OUTPUTS", "Exported", "export_checkpoint", "export_model", "read_facts"]
