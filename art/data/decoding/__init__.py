"""Decoding of clips."""
