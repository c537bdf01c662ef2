"""Export of trained models, as ``torch.export`` programs or ONNX, to files that run without this package."""

from art.tools.export.formats import FORMATS, OUTPUTS, read_facts
from art.tools.export.model import Exported, export_checkpoint, export_model

__all__ = ["FORMATS", "OUTPUTS", "Exported", "export_checkpoint", "export_model", "read_facts"]
