#!/usr/bin/env bash
# torch's ReduceLROnPlateau takes standing still, and getting worse, for progress below zero.
#
# Expected: a metric that does not move for longer than patience is a plateau, whatever its sign.
# What happens: by default progress is relative (threshold_mode="rel", 1e-4), and "better" in mode
# max means more than best * (1 + threshold). With best = -100 that is more than -100.01, which -100
# is itself, and so is -100.009. Each check counts as an improvement and takes the new, worse value
# for the best one: the rate is never lowered, however long nothing improves, and a slow decline
# never seen. Mode min of a negative metric is alike. Nothing is said.
# With: torch 2.13.0.
# Whom it hurts: schedules on a reward, on a log-likelihood or ELBO, on a negated loss or
# perplexity: often negative in fine-tuning. One that works while rewards are above zero stops
# working below.
# What avoids it: threshold_mode="abs", or threshold=0.
#
# Printed:
#
#   torch 2.13.0
#   reward stays at +100                  rate 1 -> 1e-08, last 100.000, best so far 100.000
#   reward stays at -100                  rate 1 -> 1e+00, last -100.000, best so far -100.000
#   reward falls from -100 by 0.009 each  rate 1 -> 1e+00, last -126.991, best so far -126.991
#   negated score, min, stays at -0.8     rate 1 -> 1e+00, last -0.800, best so far -0.800
#   reward stays at -100, absolute        rate 1 -> 1e-08, last -100.000, best so far -100.000
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0
venv/bin/python - <<'PY'
import sys

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

print("torch", torch.__version__.split("+")[0])


def after(mode, values, **more):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = ReduceLROnPlateau(optimizer, mode=mode, patience=2, **more)
    for value in values:
        schedule.step(value)
    return optimizer.param_groups[0]["lr"], schedule.best


cases = {
    "reward stays at +100": ("max", [100.0] * 30, {}),
    "reward stays at -100": ("max", [-100.0] * 30, {}),
    "reward falls from -100 by 0.009 each": ("max", [-100 - 0.009 * i for i in range(3000)], {}),
    "negated score, min, stays at -0.8": ("min", [-0.8] * 30, {}),
    "reward stays at -100, absolute": ("max", [-100.0] * 30, {"threshold_mode": "abs"}),
}
lowered = []
for name, (mode, values, more) in cases.items():
    rate, best = after(mode, values, **more)
    print(f"{name:37} rate 1 -> {rate:.0e}, last {values[-1]:.3f}, best so far {best:.3f}")
    lowered.append(rate < 1)
as_described = lowered == [True, False, False, False, True]
print("as described:", as_described)
sys.exit(not as_described)
PY
