"""Models on the Hugging Face Hub: as ``save_pretrained`` writes them, with a card made from the metrics."""

from art.tools.hub.card import model_card
from art.tools.hub.repository import download, is_repository, push_to_hub

__all__ = ["download", "is_repository", "model_card", "push_to_hub"]
