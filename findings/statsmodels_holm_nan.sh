#!/usr/bin/env bash
# statsmodels' multipletests: one NaN among the p-values is "rejected", or silences all the others.
#
# Expected: a test that gave no p-value (NaN: two identical samples, an empty group) is either
# refused, or left out, and the other hypotheses are corrected as if it had not been there.
# What happens, without an error and by the method chosen:
# - holm and holm-sidak (the default), wherever all other hypotheses are rejected, report the NaN as
#   rejected too: a significant difference for which there is no p-value;
# - the NaN counts as a hypothesis, so the others pay for it (0.06 below becomes 0.09);
# - simes-hochberg, hommel, fdr_bh and fdr_by make every adjusted p-value NaN; hommel then rejects
#   nothing at all, while the others still reject some, fewer than without the NaN.
# With: statsmodels 0.15.0, scipy 1.17.1, numpy 2.4.6.
# Whom it hurts: tables of many models or seeds. Two runs with identical scores give a t-test of NaN
# (scipy.stats.ttest_rel), and that row comes out starred, or takes the stars of all others away.
# What avoids it: correct the finite p-values only and put the results back in their places
# (scipy.stats.false_discovery_control raises on NaN instead).
#
# Printed:
#
#   statsmodels 0.15.0
#   scipy 1.17.1
#   numpy 2.4.6
#   p of lora, same, full against base: ['1.8e-06', 'nan', '0.00012']
#   holm rejects:                       [True, True, True]
#   holm            without the NaN [0.003, 0.06, 0.2] [True, False, False]
#                   with it         [0.004, 0.09, nan, 0.4] [True, False, False, False]
#   simes-hochberg  without the NaN [0.003, 0.06, 0.2] [True, False, False]
#                   with it         [nan, nan, nan, nan] [True, False, False, False]
#   hommel          without the NaN [0.003, 0.06, 0.2] [True, False, False]
#                   with it         [nan, nan, nan, nan] [False, False, False, False]
#   fdr_bh          without the NaN [0.003, 0.045, 0.2] [True, True, False]
#                   with it         [nan, nan, nan, nan] [True, False, False, False]
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6
venv/bin/python - <<'PY'
import importlib.metadata
import sys

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

for name in ("statsmodels", "scipy", "numpy"):
    print(name, importlib.metadata.version(name))

scores = {  # accuracy over five seeds: the third model is the baseline again
    "base": [0.51, 0.52, 0.50, 0.53, 0.51],
    "lora": [0.61, 0.63, 0.60, 0.63, 0.62],
    "same": [0.51, 0.52, 0.50, 0.53, 0.51],
    "full": [0.58, 0.60, 0.56, 0.61, 0.60],
}
with np.errstate(all="ignore"):
    tests = [stats.ttest_rel(scores[m], scores["base"]).pvalue for m in ("lora", "same", "full")]
print("p of lora, same, full against base:", [f"{p:.2g}" for p in tests])
rejected = multipletests(tests, method="holm")[0]
print("holm rejects:                      ", rejected.tolist())
as_described = [bool(rejected[1]) and bool(np.isnan(tests[1]))]

some = [0.001, 0.030, float("nan"), 0.2]
for method in ("holm", "simes-hochberg", "hommel", "fdr_bh"):
    without = multipletests([p for p in some if p == p], method=method)
    with_nan = multipletests(some, method=method)
    print(f"{method:15} without the NaN {without[1].round(3).tolist()} {without[0].tolist()}")
    print(f"{'':15} with it         {with_nan[1].round(3).tolist()} {with_nan[0].tolist()}")
    if method == "holm":
        as_described.append(with_nan[1][1] > without[1][1])
    else:
        as_described.append(bool(np.isnan(with_nan[1]).all()))
print("as described:", all(as_described))
sys.exit(not all(as_described))
PY
