#!/bin/sh
# Makes a virtual environment with circuitfind (editable) and its development tools.
#
#   sh scripts/setup_venv.sh PYTHON VENV [REQUIREMENT...]
#
# On the platform that requirements/ci.lock was made for, its exact versions hold; elsewhere, with CUDA=1, and where there is
# an NVIDIA GPU, the ranges of pyproject.toml do. A REQUIREMENT (such as 'transformer-lens==3.9.*') goes before the lock's pin.
set -eu

python=$1
venv=$2
shift 2
cd "$(dirname "$0")/.."
lock=requirements/ci.lock

say() { printf '%s\n' "setup: $*" >&2; }
die() { say "$@"; exit 1; }

command -v "$python" >/dev/null 2>&1 ||
    die "there is no '$python' here; install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "'$python' is $("$python" -V 2>&1); circuitfind needs Python 3.10 or newer: make PYTHON=python3.11"

if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "'$python' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
    say "making $venv with $("$python" -V 2>&1)"
    "$python" -m venv "$venv"
fi

here=$("$venv/bin/python" -c 'import platform as p; print("%s %s, %s %s" % (
    p.python_implementation(), ".".join(p.python_version_tuple()[:2]), p.system(), p.machine()))')
pins=$venv/pins.txt
: >"$pins"
if [ "${CUDA:-0}" = 1 ] || command -v nvidia-smi >/dev/null 2>&1; then
    say "for a GPU: versions by the ranges of pyproject.toml"
elif [ "$(sed -n 's/^# For: //p' "$lock")" != "$here" ]; then
    say "$here is not what $lock was made for: versions by the ranges of pyproject.toml"
else
    cp "$lock" "$pins"
    for requirement in "$@"; do
        name=${requirement%%[<>=!~]*}
        grep -v "^$name==" "$pins" >"$pins.new"
        mv "$pins.new" "$pins"
    done
fi

say "installing into $venv (the first time a few minutes: PyTorch is large)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$pins" --editable '.[dev]' "$@"
