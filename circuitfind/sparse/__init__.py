"""Sparse feature circuits (Marks et al. 2024, arXiv 2403.19647): features of SAEs, and what the SAEs miss, as nodes.

sites.py says where SAEs stand in a model, passes.py runs it with them in place; baseline.py holds what is compared and what
ablated nodes carry, scores.py scores nodes, ablate.py runs the model with some nodes alone, prune.py finds few that are enough,
edges.py scores what they do to each other. search.py does all of it.
"""
