"""Datasets: lists of labeled clips, read from annotation files."""
