"""The semantics bank, seen: before and after fine-tuning, as arrays, figures and files."""

from art.tools.bank.embed import Embedding, embed
from art.tools.bank.figures import embedding_figure, prompts_figure, similarity_figure
from art.tools.bank.measure import BankView, look_at_bank
from art.tools.bank.write import bank_to_folder

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
