#!/usr/bin/env bash
# Sets up the environment of launch/demo.sh with the server's packages, and serves videos of the embedded model on
# http://127.0.0.1:8000. Arguments go to `s2video serve`: bash launch/serve.sh --port 9000 --model wan2.1-t2v-14b-720p
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env serve
cd "$root"
exec .venv/bin/s2video serve "$@"
