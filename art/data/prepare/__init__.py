"""Checks and re-encoding of datasets."""
