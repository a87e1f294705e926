"""Referring segmentation networks: one paper, one file. A method sees tensors, never a dataset."""
