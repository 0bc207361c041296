#!/usr/bin/env bash
# Every test, in the environment of launch/demo.sh plus the test dependencies. Arguments go to pytest, which then runs in one process.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
ensure_env test
cd "$root"
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi

# Tests of one process share the cores. Those that stop and kill ranks run one by one afterwards: when a process group
# with stopped members loses its last parent, the system hangs up on the whole group, and two test runs would share it.
status=0
cores="$(.venv/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')"
.venv/bin/python -m pytest --numprocesses="$cores" --dist=loadfile \
    --ignore=tests/distributed --ignore=tests/e2e tests || status=$?
.venv/bin/python -m pytest tests/distributed tests/e2e || status=$?
exit "$status"
