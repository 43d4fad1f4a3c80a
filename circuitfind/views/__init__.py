"""Views: what a report shows of a run and cannot compute by itself, because it needs the model: exact effects of every node,
the curve of nested circuits, attention patterns, and what the circuit does on each prompt.

Everything runs over ``Runs`` or an ``Evaluator`` and returns the plain data of ``report``; nothing here knows of run folders.
"""
