#!/usr/bin/env bash
# datasets drops every column that the first row lacks.
#
# Expected: Dataset.from_list and Dataset.from_generator make a column of each key that some row
# has, with None where a row lacks it (as they do for a key that a later row lacks, and as
# load_dataset("json") does for the same rows).
# What happens: the keys of the first row are the columns. Other keys are thrown away with their
# values; no error, no warning (from_generator fails where a batch written later has them). Inside a
# nested dict it is the other way round: there the keys of all rows are united, and each row gets
# the others' keys with None.
# With: datasets 5.2.0, pyarrow 26.0.1.
# Whom it hurts: chat and preference data, where keys are optional. If the first row has no
# "system", no "weight" or no "tools", no row has; training goes on without them. A tool call's
# arguments come back with every other tool's arguments as null, and chat templates print those into
# the prompt.
# What avoids it: give the first row all keys (None will do), or pass features=, with which
# from_generator keeps them and from_list fails aloud; keep nested arguments as JSON text.
#
# Printed:
#
#   datasets 5.2.0 pyarrow 26.0.1
#   from_list                 ['answer', 'prompt']
#   from_list, rows reversed  ['answer', 'prompt', 'system']
#   from_generator            ['answer', 'prompt']
#   load_dataset('json')      ['answer', 'prompt', 'system', 'weight']
#   arguments given {'city': 'Lima'} and read back {'city': 'Lima', 'a': None, 'b': None}
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q datasets==5.2.0 pyarrow==26.0.1
venv/bin/python - <<'PY'
import json
import sys

import datasets
import pyarrow

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)

rows = [
    {"prompt": "2+2?", "answer": "4"},
    {"prompt": "Capital of Peru?", "answer": "Lima", "weight": 3.0},
    {"prompt": "Hi", "answer": "Arr!", "system": "You are a pirate."},
]


def generate():
    yield from rows


with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
made = {
    "from_list": datasets.Dataset.from_list(rows),
    "from_list, rows reversed": datasets.Dataset.from_list(rows[::-1]),
    "from_generator": datasets.Dataset.from_generator(generate, cache_dir="cache"),
    "load_dataset('json')": datasets.load_dataset(
        "json", data_files="rows.jsonl", split="train", cache_dir="cache"
    ),
}
for name, dataset in made.items():
    print(f"{name:25}", sorted(dataset.column_names))
calls = [{"call": {"name": "weather", "arguments": {"city": "Lima"}}},
         {"call": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
back = datasets.Dataset.from_list(calls)[0]["call"]["arguments"]
print("arguments given", calls[0]["call"]["arguments"], "and read back", back)

as_described = (
    sorted(made["from_list"].column_names) == ["answer", "prompt"]
    and sorted(made["from_generator"].column_names) == ["answer", "prompt"]
    and "weight" in made["load_dataset('json')"].column_names
    and "a" in back
)
print("as described:", as_described)
sys.exit(not as_described)
PY
