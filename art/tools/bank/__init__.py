"""The semantics bank before and after fine-tuning: arrays, figures and the files of ``art bank``."""

from art._deprecated import renamed_names
from art.tools.bank.analysis import BankAnalysis, Embedding, analyze_bank, embed
from art.tools.bank.figures import embedding_figure, prompts_figure, similarity_figure, write_bank_analysis

__all__ = [
    "BankAnalysis",
    "Embedding",
    "analyze_bank",
    "embed",
    "embedding_figure",
    "prompts_figure",
    "similarity_figure",
    "write_bank_analysis",
]

__getattr__ = renamed_names(
    __name__,
    {"BankView": "BankAnalysis", "look_at_bank": "analyze_bank", "bank_to_folder": "write_bank_analysis"},
)
