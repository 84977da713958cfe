# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test: makes a virtual environment in the clone and installs graftkit with the given extras,
# once for each content of pyproject.toml and of the constraints. It is .venv with the versions of constraints.txt, unless
# other_environment names another one first.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"
interpreter=""
constraints="$(cat "$root/scripts/constraints.txt")"
upgrade=()

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

# interpreter_of VERSION|PATH: an interpreter that runs, given as 3.13 or by its path.
interpreter_of() {
    local name="$1"
    case "$name" in [0-9]*) name="python$name" ;; esac
    if ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$name does not run, or is older than Python 3.11: put it on the PATH, or name one with --python PATH" >&2
        return 2
    fi
    echo "$name"
}

# other_environment pinned|newest|lowest INTERPRETER [TORCH]: a virtual environment of its own beside .venv. torch stays at the
# release of constraints.txt unless TORCH names one: what pip finds for another may bring gigabytes of accelerator packages.
other_environment() {
    local kind="$1" torch="${3:+torch==$3}" version
    interpreter="$2"
    torch="${torch:-$(grep '^torch==' "$root/scripts/constraints.txt")}"
    version="$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    venv="$root/.venv-$kind-$version"
    python="$venv/bin/python"
    case "$kind" in
        lowest) constraints="$("$interpreter" "$root/scripts/floors.py" "$torch")" ;;
        newest)
            constraints="$torch"
            upgrade=(--upgrade --upgrade-strategy eager)
            ;;
    esac
}

make_venv() {
    local base="$interpreter"
    base="${base:-$(base_python)}"
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null || ! "$base" -m venv --clear "$venv"; then
        echo "cannot make ${venv##*/} with $base: install the venv and ensurepip parts of Python (python3-venv on Debian)" >&2
        return 2
    fi
}

# environment EXTRAS, such as "" or "[test]". What was installed with more extras serves those who ask for none.
environment() {
    local extras="$1" key stamp="$venv/installed"
    # What is newest is asked anew each day.
    key="$({ cat "$root/pyproject.toml"; echo "$constraints"; [ -z "${upgrade[*]:-}" ] || date +%F; } | sha256sum | cut -d' ' -f1)"
    if [ -x "$python" ] && grep -qsF "$key $extras" "$stamp"; then
        return
    fi
    # A half-made environment (no pip) is made anew; one that works is kept, so that torch is not fetched again.
    if ! { [ -x "$python" ] && "$python" -m pip --version; } >/dev/null 2>&1; then
        make_venv
    fi
    echo "installing graftkit$extras into ${venv##*/} (once)" >&2
    # torch first and alone, in the pinned release: a newer one would pull gigabytes of accelerator packages with it.
    "$python" -m pip install -qq --disable-pip-version-check "$(grep '^torch==' <<<"$constraints")"
    echo "$constraints" > "$venv/constraints.txt"
    "$python" -m pip install -qq --disable-pip-version-check ${upgrade[@]+"${upgrade[@]}"} -c "$venv/constraints.txt" -e "$root$extras"
    echo "$key $extras" > "$stamp"
}
