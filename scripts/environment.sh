# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test: makes .venv in the clone and installs graftkit with the given extras, once for
# each content of pyproject.toml and constraints.txt.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
stamp="$root/.venv/installed"

# The first interpreter that runs and is new enough; a version switcher may have a name on the PATH that does not run.
base_python() {
    local name
    for name in python3.11 python3 python3.12 python3.13; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "graftkit needs Python 3.11 or newer, as python3 on the PATH" >&2
    return 2
}

make_venv() {
    local base
    base="$(base_python)"
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null || ! "$base" -m venv --clear "$root/.venv"; then
        echo "cannot make .venv with $base: install the venv and ensurepip parts of Python (python3-venv on Debian)" >&2
        return 2
    fi
}

# environment EXTRAS, such as "" or "[test]". What was installed with more extras serves those who ask for none.
environment() {
    local extras="$1" key
    key="$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | sha256sum | cut -d' ' -f1)"
    if [ -x "$python" ] && grep -qsF "$key $extras" "$stamp"; then
        return
    fi
    # A half-made .venv (no pip) is made anew; one that works is kept, so that torch is not fetched again.
    if ! { [ -x "$python" ] && "$python" -m pip --version; } >/dev/null 2>&1; then
        make_venv
    fi
    echo "installing graftkit$extras into .venv (once)" >&2
    # torch first and alone, in the pinned release: a newer one would pull gigabytes of accelerator packages with it.
    "$python" -m pip install -qq --disable-pip-version-check "$(grep '^torch==' "$root/scripts/constraints.txt")"
    "$python" -m pip install -qq --disable-pip-version-check -c "$root/scripts/constraints.txt" -e "$root$extras"
    echo "$key $extras" > "$stamp"
}
