"""Known circuits as a regression suite: tasks run against what they expect, and against what they gave the last time."""
