#!/usr/bin/env bash
# Every test, in the environment of launch/demo.sh plus the test dependencies. Arguments go to pytest, which then runs in one process.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
ensure_env test
cd "$root"
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi

# Tests of one process share the cores; those that start ranks, servers and programs need all of them one by one.
status=0
.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile tests/unit tests/cuda tests/comfyui \
    || status=$?
.venv/bin/python -m pytest tests/distributed tests/e2e tests/server || status=$?
exit "$status"
