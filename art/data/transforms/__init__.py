"""Transforms: frame sampling and augmentation."""
