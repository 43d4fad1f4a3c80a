"""Attribution graphs: how the active features of transcoders, with attention frozen, build up a model's next token.

``frozen`` is the network that is left when attention patterns, norm scales and the features that fire are held fixed: it is
linear. ``features`` puts dictionaries in place of its MLPs, ``rows`` computes edges, ``build`` makes a graph of a prompt and
``prune`` a smaller one; ``features_graph`` finds the features that a task needs. Nothing but ``frozen``, ``features``,
``rows``, ``build`` and what finds a task's features needs torch.
"""
