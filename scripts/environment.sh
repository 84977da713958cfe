# Sourced by scripts/demo and scripts/test: makes .venv in the clone and installs graftkit with the given extras.
# torch is pinned by constraints.txt, so that no unpinned requirement pulls gigabytes of accelerator packages.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

environment() {
    local extras="$1" base wanted
    base="$(command -v python3.11 || command -v python3 || true)"
    if [ -z "$base" ] || ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "graftkit needs Python 3.11 or newer, as python3 on the PATH" >&2
        exit 2
    fi
    wanted="$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | sha256sum | cut -d' ' -f1) $extras"
    if [ "$(cat "$root/.venv/installed" 2>/dev/null || true)" = "$wanted" ]; then
        return
    fi
    [ -x "$python" ] || "$base" -m venv "$root/.venv" || {
        echo "python3 -m venv failed; install the venv and ensurepip parts of Python (python3-venv on Debian)" >&2
        exit 2
    }
    echo "installing graftkit into .venv (once)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/scripts/constraints.txt")" 2> >(grep -v '^WARNING: Location' >&2)
    "$python" -m pip install --quiet --disable-pip-version-check -c "$root/scripts/constraints.txt" -e "$root$extras" 2> >(grep -v '^WARNING: Location' >&2)
    echo "$wanted" > "$root/.venv/installed"
}
