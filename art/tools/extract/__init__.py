"""``art extract``: the features of a frozen backbone for every clip of a dataset, written once."""

from art.tools.extract.directory import Extracted, Plan, extract, plan
from art.tools.extract.extractor import Extractor, ExtractSettings

__all__ = ["ExtractSettings", "Extracted", "Extractor", "Plan", "extract", "plan"]
