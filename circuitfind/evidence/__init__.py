"""Evidence: what a sceptic would ask of a circuit. Measurements of a given circuit (knock-outs, curves, hypothesis tests), how
stable it is, how it compares with a known one, the controls that it must beat, and the verdict that follows. Everything runs
over an ``Evaluator`` and returns plain data; nothing here knows of runs, folders or the screen.
"""
