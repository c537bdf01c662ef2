"""Loading: clips as a PyTorch dataset, batches of clips, and storage in shards."""
