#!/usr/bin/env bash
# Every test, in the environment of launch/demo.sh plus the test dependencies. Arguments go to pytest.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
ensure_env test
cd "$root"
exec .venv/bin/python -m pytest "$@"
