"""Contrast of tracklets across a batch, and across devices."""
