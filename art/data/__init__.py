"""Data sets, decoding, sampling and augmentation."""
