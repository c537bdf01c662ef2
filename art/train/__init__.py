"""Training, evaluation and comparison, with the configuration and the checkpoints they share."""
