"""Sparse dictionaries of a model's activations: transcoders and SAEs, read from the formats of other tools, and trained.

``dictionary`` is what all of them are once read; the readers are one file for each format.
"""
