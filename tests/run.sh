#!/usr/bin/env bash
# Every test, in the environment of launch/demo.sh plus the test dependencies. Arguments go to pytest, which then runs in one process.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
ensure_env test
cd "$root"
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi

# A process for each core, and each file's tests in one of them: many tests wait for processes that they started.
exec .venv/bin/python -m pytest --numprocesses="$(.venv/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')" \
    --dist=loadfile tests
