"""Who does the work: this process, several processes of this machine, or a Ray cluster."""
