# Sourced by launch/demo.sh and tests/run.sh: a virtual environment in .venv with the project and its pinned dependencies.
#
#   root        the checkout (set here)
#   ensure_env  make .venv if there is none, and install into it unless that is already done; "ensure_env test" for the
#               test dependencies too. Afterwards "$root/.venv/bin/python" is ready.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # several processes share the cores
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Prints a Python that is new enough and can make virtual environments.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

make_venv() {
    local python
    if ! python="$(find_python)"; then
        # Debian keeps the venv module in a package of its own.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "Installing Python's venv module from the system's packages ..." >&2
            apt-get update -q >&2 && apt-get install -qy python3-venv >&2 || return 1
        fi
        if ! python="$(find_python)"; then
            echo "error: no Python >= 3.11 with venv found: install python3.11 and python3.11-venv, or set PYTHON" >&2
            return 1
        fi
    fi
    "$python" -m venv "$root/.venv"
}

ensure_env() {
    local extra="${1:-}" stamp wanted
    stamp="$root/.venv/.installed${extra:+-$extra}"
    if [ ! -x "$root/.venv/bin/python" ]; then
        make_venv || return 1
    fi
    wanted="$(cd "$root" && { pwd; cat pyproject.toml constraints.txt; } | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return 0
    fi
    echo "Installing into $root/.venv (some minutes, once) ..." >&2
    rm -f "$root"/.venv/.installed*
    (cd "$root" && .venv/bin/python -m pip install --quiet -c constraints.txt -e ".${extra:+[$extra]}") || {
        echo "error: the installation failed; pip says why above. Run this again to try again." >&2
        return 1
    }
    printf '%s\n' "$wanted" >"$root/.venv/.installed"  # every extra includes the plain installation
    printf '%s\n' "$wanted" >"$stamp"
}
