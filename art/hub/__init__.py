"""Models on the Hugging Face Hub: as ``save_pretrained`` writes them, with a card made from the metrics."""

from .card import model_card
from .repository import download, is_repository, push_to_hub

__all__ = ["download", "is_repository", "model_card", "push_to_hub"]
