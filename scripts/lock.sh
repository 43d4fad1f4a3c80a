#!/bin/sh
# Writes requirements/ci.lock from what a virtual environment holds: exact versions, no hosts, no paths, no build labels.
#
#   sh scripts/lock.sh VENV
set -eu

python=$1/bin/python
cd "$(dirname "$0")/.."
{
    echo "# The exact versions that CI runs. Made by 'make lock'; used as pip constraints by scripts/setup_venv.sh."
    "$python" -c 'import platform as p; print("# For: %s %s, %s %s" % (
        p.python_implementation(), ".".join(p.python_version_tuple()[:2]), p.system(), p.machine()))'
    "$python" - <<'PYTHON'
import importlib.metadata as metadata
import re

skip = {"circuitfind", "pip"}
pins = {}
for found in metadata.distributions():
    name = re.sub(r"[-_.]+", "-", found.name).lower()
    if name not in skip:
        pins[name] = found.version.partition("+")[0]  # torch 2.13.0+cpu is 2.13.0, whichever build the index gives
for name in sorted(pins):
    print(f"{name}=={pins[name]}")
PYTHON
} >requirements/ci.lock
