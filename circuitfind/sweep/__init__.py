"""Sweeps: many runs of ``discover`` from one file, one after the other, and what came of each side by side."""
