"""Evaluation: accuracy, saved predictions, and the report."""
