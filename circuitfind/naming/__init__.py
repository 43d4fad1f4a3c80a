"""What neurons and features are: on which texts they fire, what they write, which heads write into them.

``banks`` is where their weights are found; ``contexts`` runs the model, ``lens`` and ``evidence`` look at weights alone.
"""
