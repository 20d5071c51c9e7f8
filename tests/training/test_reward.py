"""Stage `reward`: the policy is left alone, and the model loads without drbode."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode.config import Method, RewardConfig
from drbode.data.prompts import Renderer
from drbode.data.rows import Message, Pair
from drbode.data.splits import Ledger, Split
from drbode.models.base import Policy, bodinho_folder, load_policy
from drbode.models.heads import RewardModel
from drbode.models.methods import wrap
from drbode.training.context import StageContext
from drbode.training.reward import RewardModule
from drbode.training.stages import StageResult, run_stage
from drbode.trees import Tree, pack
from tests.conftest import run_context, settings

# Plain transformers and peft: a score for each sequence, one at a time and padded in one batch.
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, lora, full, sequences = *sys.argv[1:4], json.loads(sys.argv[4])
adapted = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=1, dtype=torch.float32
)
adapted = PeftModel.from_pretrained(adapted, lora)
whole = AutoModelForSequenceClassification.from_pretrained(full, dtype=torch.float32)
scores = {}
for name, model, folder in (("lora", adapted, lora), ("full", whole, full)):
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        alone = [float(model(torch.tensor([ids])).logits) for ids in sequences]
        together = model(**batch).logits.flatten().tolist()
    scores[name] = [alone, together]
assert not any(name.startswith("drbode") for name in sys.modules)
print(json.dumps(scores))
"""


def policy(method: Method) -> Policy:
    made = load_policy(settings().model, torch.float32, "sdpa")
    wrap(made, settings(f"method={method}").tuning())
    return made


def pairs(made: Policy, count: int = 6) -> Split:
    render = Renderer(made.tokenizer, 200)
    rows = [
        Pair(
            (Message("user", f"Qual é a causa {n}?"),),
            "vírus, procure ajuda" * (n % 3 + 1),
            "não sei.",
            "",
        )
        for n in range(count)
    ]
    return Split([tree for row in rows for tree in render.pair(row).trees], Ledger())


def reward_stage(**changes: Any) -> RewardConfig:
    small = {
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "global_batch_size": 3,
        "steps": 3,
        "warmup_ratio": 0.0,
        "validate_every": None,
        "checkpoints": 0,
    }
    return replace(settings().reward, **small | changes)


def run(made: Policy, folder: Path, **changes: Any) -> tuple[StageResult, RewardModel]:
    split = pairs(made)
    result, reward = run_stage(
        StageContext(
            made,
            "reward",
            reward_stage(**changes),
            split,
            split,
            run_context(folder),
            folder=folder / "checkpoints",
            step_offset=0,
        )
    )
    assert reward is not None
    return result, reward


def digest(made: Policy) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(made.network.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def test_it_leaves_the_policy_alone_and_loads_in_plain_transformers_and_peft(
    tmp_path: Path,
) -> None:
    expected, sequences = {}, []
    for method in ("lora", "full"):
        made = policy(method)
        before = digest(made)
        result, reward = run(made, tmp_path / method)
        assert digest(made) == before
        assert result.train_loss < 0.69
        reward.save(made, tmp_path / method / "reward")
        assert digest(made) == before
        trees = pairs(made).trees
        batch = pack(trees)
        scores = reward.scores(made, batch)
        assert scores.std() > 0.1
        expected[method] = scores.tolist()
        sequences = [t.prompt + c.ids for t in trees for c in t.completions]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PLAIN,
            str(bodinho_folder()),
            str(tmp_path / "lora" / "reward"),
            str(tmp_path / "full" / "reward"),
            json.dumps(sequences),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for method, pairs_of_scores in json.loads(done.stdout.splitlines()[-1]).items():
        for scores in pairs_of_scores:
            assert scores == pytest.approx(expected[method], abs=1e-4), method


def test_accuracy_and_calibration_by_hand(tmp_path: Path) -> None:
    """Confidence 0.88 and 0.62 in two right and one wrong preference."""
    context = run_context(tmp_path)
    made = RewardModule(
        policy("lora"),
        "reward",
        reward_stage(),
        steps=1,
        step_offset=0,
        machine=context.machine,
        end=1,
    )
    made._calibrate(torch.tensor([2.0, 2.0, -2.0, 0.5]).sigmoid())
    sure, unsure = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))
    by_hand = (abs(3 * sure - 2) + abs(unsure - 1)) / 4
    assert made.held_out_metrics()["calibration_error"] == pytest.approx(by_hand, abs=1e-6)


def test_held_out_accuracy_counts_pairs_and_not_batches(tmp_path: Path) -> None:
    made = policy("lora")
    split = pairs(made, 5)
    measures = []
    for budget in (10_000, 1):
        made = policy("lora")
        result, _ = run_stage(
            StageContext(
                made,
                "reward",
                reward_stage(max_tokens=budget, steps=1),
                split,
                Split([_swapped(t) if n < 2 else t for n, t in enumerate(split.trees)], Ledger()),
                run_context(tmp_path / str(budget)),
                folder=tmp_path / str(budget) / "checkpoints",
                step_offset=0,
            )
        )
        measures.append(result.measures)
    assert measures[0]["accuracy"] == pytest.approx(0.6)
    assert measures[0] == pytest.approx(measures[1], abs=1e-5)


def _swapped(tree: Tree) -> Tree:
    return tree._replace(completions=tree.completions[::-1])
