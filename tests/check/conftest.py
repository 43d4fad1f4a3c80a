"""Checks run as other commands do: in a folder of their own, in this process, in one thread."""

from tests.cli.conftest import cli, one_thread, own_folder

__all__ = ["cli", "one_thread", "own_folder"]
