"""A run that is killed anywhere and goes on equals one that never stopped; damage is not used."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from drbode import config, train
from drbode.config import BadInput
from drbode.data.bodinho import PAIRS
from drbode.data.splits import Ledger, Split
from drbode.training import cache, checkpoints
from drbode.training.checksums import KEY, load_tensors, read_checked, save_tensors, write_checked
from drbode.training.cpt import CPTModule
from drbode.trees import Completion, Tree
from tests.conftest import NO_GENERAL, VOCABULARY
from tests.objectives import test_mlm as of_mlm
from tests.training import test_finite as of_all
from tests.training import test_ppo as of_ppo
from tests.training import test_stages as of_sft

TIMES = {"seconds", "tokens_per_second", "peak_memory_gib"}


def untimed(result: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if name not in TIMES}


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Of metrics.csv, without those that say how long something took."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [tuple(r.values()) for r in csv.DictReader(file) if r["name"] not in TIMES]


# --- a stage that has ended ---------------------------------------------------------------------


def stopped_sft(folder: Path, every: int) -> tuple[Any, Any]:
    """Ends early, in between two metrics: random rows cannot be learned for others."""
    stage = of_sft.block(
        epochs=60.0,
        validate_every=1,
        patience=1,
        learning_rate=0.1,
        keep_best=True,
        checkpoints=2,
        checkpoint_every=every,
    )
    made = of_sft.policy()
    drawn = torch.Generator().manual_seed(9)
    ids = torch.randint(VOCABULARY, (6, 8), generator=drawn).tolist()
    other = Split([Tree(i[:3], [Completion(i[3:], [True] * 5)]) for i in ids], Ledger())
    return of_sft.run(made, stage, folder, other), made


def stopped_ppo(folder: Path, every: int) -> tuple[Any, Any]:
    """Its true score never gets better."""
    stage = of_ppo.ppo_stage(
        steps=24, validate_every=4, gold_patience=1, checkpoints=2, checkpoint_every=every
    )
    made = of_ppo.policy()
    return of_ppo.run(made, stage, folder, of_ppo.prompts(3)), made


@pytest.mark.parametrize(
    ("run", "killed"),
    [
        (stopped_sft, "after its end"),
        (stopped_sft, "before its weights"),
        (stopped_ppo, "before its weights"),
    ],
)
def test_a_stage_that_stopped_early_stays_at_its_end(
    run: Callable[[Path, int], tuple[Any, Any]],
    killed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drbode.training.rollouts.gold_score", lambda *_: 0.0)
    expected, straight = run(tmp_path, 1)
    assert expected.ended_by == "early stopping"
    logged = rows(tmp_path)
    left = tmp_path / "checkpoints"
    for name in {
        "after its end": [],
        "before its weights": ["ended.json", "last.safetensors"],
    }[killed]:
        (left / name).unlink()
    result, resumed = run(tmp_path, 1)
    assert untimed(result) == untimed(expected)
    assert rows(tmp_path) == logged
    of_sft.assert_same(straight, resumed, 0)


def test_cpt_killed_before_its_first_checkpoint_logs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "straight").mkdir()
    of_all.run_cpt(tmp_path / "straight")
    with monkeypatch.context() as patch:

        def stops(*_: Any) -> None:
            raise RuntimeError("the power goes out")

        patch.setattr(CPTModule, "training_step", stops)
        (tmp_path / "killed").mkdir()
        with pytest.raises(RuntimeError, match="power"):
            of_all.run_cpt(tmp_path / "killed")
        assert rows(tmp_path / "killed")  # of the validation before the first step
    of_all.run_cpt(tmp_path / "killed")
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")


def test_how_often_mlm_validates_changes_no_draw(tmp_path: Path) -> None:
    ends = []
    for every in (1, None):
        made = of_mlm.policy()
        of_mlm.run(made, of_mlm.block(validate_every=every), tmp_path / str(every))
        ends.append(made)
    of_sft.assert_same(*ends, 0)


# --- a run that was killed ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_keeps_its_open_answers_and_repeats_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = PAIRS["train"]()[:10]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = ["stages=dpo", "dpo.steps=1", "dpo.data.path=pairs.jsonl", "dpo.kl_prompts=0"]
    words += ["dpo.data.validation_share=0.2", "open.max_new_tokens=2", "benchmark.questions=1"]
    words += ["trainer.progress=false", "trainer.threads=1", "logger=csv", *NO_GENERAL]

    def run() -> Path:
        done = train.job(config.compose("train", words), words, False)
        assert done is not None
        return done.folder

    folder = run()
    path = folder / "record.json"
    finished, logged = json.loads(path.read_text()), rows(folder)
    assert finished["base"]["open"]
    # Killed after the last stage was recorded.
    path.write_text(json.dumps(finished | {"status": "running"}))
    run()
    again = json.loads(path.read_text())
    assert again["base"]["open"] == finished["base"]["open"]
    assert again["stages"]["dpo"]["open"] == finished["stages"]["dpo"]["open"]
    # Killed after the stage was cached and before it was recorded.
    path.write_text(json.dumps(finished | {"status": "running", "stages": {}}))
    run()
    assert rows(folder) == logged
    # The content of the cached stage has changed: it is trained again.
    (kept,) = (folder.parent / ".cache" / "stages").glob("*/last.safetensors")
    before = kept.read_bytes()
    harm(kept)
    (folder / "checkpoints" / "dpo" / "ended.json").unlink()
    path.write_text(json.dumps(finished | {"status": "running", "stages": {}}))
    run()
    assert kept.read_bytes() == before
    assert rows(folder) == logged


# --- damage -------------------------------------------------------------------------------------


def harm(path: Path) -> None:
    """Changes one bit of a tensor; the file stays well formed."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_tensors_and_json_whose_content_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_tensors(tensors, path)
    assert torch.equal(load_tensors(path, "no")["b"], tensors["b"])
    harm(path)
    with pytest.raises(BadInput, match=r"a.safetensors: is damaged .*checksum differ\); delete it"):
        load_tensors(path, "delete it")
    save_file(tensors, path)
    with pytest.raises(BadInput, match="checksum"):
        load_tensors(path, "delete it")
    path = tmp_path / "a.json"
    write_checked(path, {"loss": 0.25, "none": None})
    assert read_checked(path) == {"loss": 0.25, "none": None}
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(ValueError, match="checksum"):
        read_checked(path)


def test_a_checkpoint_whose_content_changed_is_refused(tmp_path: Path) -> None:
    stage = of_sft.block(epochs=2.0, checkpoints=1, checkpoint_every=2)
    of_sft.run(of_sft.policy(), stage, tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    expected = checkpoint["state_dict"]
    checkpoints.read(path, expected)
    next(iter(checkpoint["optimizer_states"][0]["state"].values()))["exp_avg"][0] += 1
    torch.save(checkpoint, path)
    (tmp_path / "checkpoints" / "ended.json").unlink()
    with pytest.raises(BadInput, match=r"ckpt: is damaged .*checksum.*delete it"):
        of_sft.run(of_sft.policy(), stage, tmp_path)
    assert KEY in checkpoint


def test_a_cached_stage_is_kept_whole_or_is_none(tmp_path: Path) -> None:
    made = of_sft.policy()
    result = of_sft.run(made, of_sft.block(), tmp_path)
    entry = cache.Entry(tmp_path / "entry")
    metrics = tmp_path / "metrics.csv"
    for name in (None, "last.safetensors", "metrics.csv", "result.json"):
        assert entry.result is None
        entry.keep(result, tmp_path / "checkpoints", metrics, "sft")
        assert entry.result == result
        if name is not None:
            path = tmp_path / "entry" / name
            content = path.read_bytes()
            at = content.rindex(b".") + 1 if path.suffix != ".safetensors" else -3
            changed = bytearray(content)
            changed[at] ^= 1
            path.write_bytes(changed)
        else:
            (tmp_path / "entry" / "result.json").unlink()
