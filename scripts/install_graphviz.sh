#!/bin/sh
# Finds Graphviz's `dot`; installs it with the system's package manager where that needs no question; otherwise says what
# to install. Always ends with 0: everything but pictures works without Graphviz.
#
#   GRAPHVIZ=no sh scripts/install_graphviz.sh     leaves the system alone
set -u

say() { printf '%s\n' "graphviz: $*" >&2; }

found() { command -v dot >/dev/null 2>&1; }

if found; then
    exit 0
fi

# Root needs no sudo; a sudo that asks for a password is not used.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

may_be_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
}

has() { command -v "$1" >/dev/null 2>&1; }

# Prints the command that a user would type here; fails where there is no known package manager.
advice() {
    if has brew; then echo "brew install graphviz"
    elif has apt-get; then echo "sudo apt-get install graphviz"
    elif has dnf; then echo "sudo dnf install graphviz"
    elif has pacman; then echo "sudo pacman -S graphviz"
    elif has apk; then echo "sudo apk add graphviz font-dejavu"
    elif has micromamba; then echo "micromamba install -c conda-forge graphviz"
    elif has conda; then echo "conda install -c conda-forge graphviz"
    else return 1
    fi
}

apt_install() {
    # The lists may be missing or old: they are fetched only when the first try fails.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends graphviz ||
        { as_root apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends graphviz; }
}

# Tries the ways that need no question, the system's own first.
install() {
    if has brew && [ "$(id -u)" -ne 0 ]; then
        brew install --quiet graphviz && return
    fi
    if may_be_root; then
        if has apt-get; then apt_install && return
        elif has dnf; then as_root dnf install -y -q graphviz && return
        elif has pacman; then as_root pacman -S --noconfirm --needed graphviz && return
        elif has apk; then as_root apk add --quiet graphviz font-dejavu && return
        fi
    fi
    if [ -n "${CONDA_PREFIX:-}" ]; then
        if has micromamba; then micromamba install -y -q -c conda-forge graphviz && return
        elif has conda; then conda install -y -q -c conda-forge graphviz && return
        fi
    fi
    return 1
}

if [ "${GRAPHVIZ:-}" != no ] && log=$(mktemp); then
    say "no 'dot' on the PATH: installing it"
    install >"$log" 2>&1 </dev/null
    if found; then
        rm -f "$log"
        say "installed $(dot -V 2>&1)"
        exit 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
fi

if how=$(advice); then
    say "pictures (SVG, PNG, PDF) need Graphviz; everything else works without it. Install it with: $how"
else
    say "pictures (SVG, PNG, PDF) need Graphviz; everything else works without it. Install the package 'graphviz'," \
        "so that 'dot' is on the PATH"
fi
exit 0
