#!/usr/bin/env bash
# OmegaConf reads about 1 in 50 short commit ids as a number, also into a field typed str.
#
# Expected: `revision: 2714e31` is the text of seven hex digits that it looks like; PyYAML's
# safe_load says so too. And a field that a structured config declares as `str` keeps the text.
# What happens: OmegaConf adds a float rule of its own to YAML, so that 1e-3 is a number. Digits,
# one e and digits are one as well: 2714e31 is 2.714e+34 and 3e37952 is inf. Digits up to 7 after a
# 0 are octal in a file, as for PyYAML (0426465 becomes 142645), though text on hydra's command
# line. Where the field is typed str the number is turned back into text: "2.714e+34", "inf",
# "142645". Nothing is said.
# With: omegaconf 2.3.1, hydra-core 1.3.8, PyYAML 6.0.4.
# Whom it hurts: configs and sweeps that pin a model, data set or git revision by its short id, or
# name a run by a hash. 1 in 50 fails much later as "revision 2.714e+34 not found", or makes folders
# called inf; the same value given on the command line and in the file can be two.
# What avoids it: quote ids ('"2714e31"', on the command line with quotes that the shell leaves), or
# pin by the full 40 digits, where this does not happen in practice.
#
# Printed:
#
#   omegaconf 2.3.1
#   hydra-core 1.3.8
#   PyYAML 6.0.4
#   2714e31: PyYAML '2714e31', OmegaConf 2.714e+34, typed str '2.714e+34', hydra 2.714e+34
#   3e37952: PyYAML '3e37952', OmegaConf inf, typed str 'inf', hydra inf
#   0426465: PyYAML 142645, OmegaConf 142645, typed str '142645', hydra '0426465'
#   c0ffee1: PyYAML 'c0ffee1', OmegaConf 'c0ffee1', typed str 'c0ffee1', hydra 'c0ffee1'
#   of 4000 random ids of seven digits, 81 are another text in a field typed str
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q omegaconf==2.3.1 hydra-core==1.3.8 PyYAML==6.0.4
venv/bin/python - <<'PY'
import importlib.metadata
import random
import sys
from dataclasses import dataclass

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

for name in ("omegaconf", "hydra-core", "PyYAML"):
    print(name, importlib.metadata.version(name))


@dataclass
class Model:
    revision: str = "main"


parser = OverridesParser.create()


def read(text):
    """As PyYAML, an OmegaConf file, one merged into a `str` field and hydra's command line do."""
    loaded = OmegaConf.create(f"revision: {text}")
    typed = OmegaConf.merge(OmegaConf.structured(Model), loaded).revision
    line = parser.parse_override(f"revision={text}").value()
    return yaml.safe_load(f"revision: {text}")["revision"], loaded.revision, typed, line


for text in ("2714e31", "3e37952", "0426465", "c0ffee1"):
    plain, loaded, typed, line = read(text)
    print(f"{text}: PyYAML {plain!r}, OmegaConf {loaded!r}, typed str {typed!r}, hydra {line!r}")
random.seed(0)
ids = [f"{random.getrandbits(28):07x}" for _ in range(4000)]
changed = sum(read(text)[2] != text for text in ids)
print(f"of 4000 random ids of seven digits, {changed} are another text in a field typed str")
as_described = read("2714e31") == ("2714e31", 2.714e34, "2.714e+34", 2.714e34) and changed > 40
print("as described:", as_described)
sys.exit(not as_described)
PY
