"""The semantics bank, seen: before and after fine-tuning, as arrays, figures and files."""

from .embed import Embedding, embed
from .figures import embedding_figure, prompts_figure, similarity_figure
from .measure import BankView, look_at_bank
from .write import bank_to_folder

__all__ = [
    "BankView",
    "Embedding",
    "bank_to_folder",
    "embed",
    "embedding_figure",
    "look_at_bank",
    "prompts_figure",
    "similarity_figure",
]
