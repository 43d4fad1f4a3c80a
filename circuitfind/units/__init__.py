"""Neurons and features in a circuit: scored all at once, verified one by one and in groups, and few of them kept.

``find`` is the way through; docs/neurons-and-features.md says what it does and why.
"""
