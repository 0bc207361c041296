#!/usr/bin/env bash
# From a fresh clone to two videos and their comparison: the same caption and seed, with CFG alone and with S²-Guidance.
# Each is sampled on two ranks. Takes no arguments; SEED=3 bash launch/demo.sh shows another sample.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_env
cd "$root"

seed="${SEED:-0}"
out=runs/demo
sample() {
    .venv/bin/torchrun --nproc-per-node 2 launch/t2v.py --config configs/shapes.yaml --seed "$seed" "$@"
}

echo "1/3  CFG"
sample --output "$out/cfg.mp4" --set guidance.s2_scale=0
echo "2/3  S²-Guidance"
sample --output "$out/s2.mp4"
echo "3/3  side by side"
.venv/bin/s2video compare "$out/cfg.mp4" "$out/s2.mp4" --labels CFG S² -o "$out/side-by-side.mp4"

cat <<END

CFG:           $root/$out/cfg.mp4
S²-Guidance:   $root/$out/s2.mp4
Side by side:  $root/$out/side-by-side.mp4

Open them in any player or browser, for instance:  xdg-open $out/side-by-side.mp4   (macOS: open ...)
From another machine, copy them first:             scp HOST:$root/$out/side-by-side.mp4 .
How each was made is recorded next to it, in $out/cfg.json and $out/s2.json.

What to look for: at the paper's ω = 0.25 the two clips are nearly alike; this small model's clips change visibly from
ω = 1 on, for better or for worse (docs/images/omega.png shows both). The same clip with ω = 1:

  .venv/bin/s2video generate --config configs/shapes.yaml --seed $seed --set guidance.s2_scale=1 --output $out/s2-strong.mp4
END
