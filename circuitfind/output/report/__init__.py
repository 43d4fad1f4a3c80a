"""A run as one HTML file that needs nothing else: what it found, how sure that is, and how to get it again."""
