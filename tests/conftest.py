"""Shapes in annotations are checked while the tests run, and nothing may reach a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_SILENT", None)  # under it an offline run could not be read back

from jaxtyping import install_import_hook

install_import_hook(["drbode.objectives", "drbode.models", "drbode.trees"], "beartype.beartype")

import torch

torch.set_num_threads(1)  # what the tests compute is too small to share out

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from drbode import config
from drbode.models.machine import Machine
from drbode.record import StageRecord
from drbode.training.callbacks import CsvLogger
from drbode.training.context import RunContext

VOCABULARY = 97
# For runs whose tests are about something else than what a run forgets.
NO_GENERAL = ("forgetting.questions_path=null", "forgetting.text_path=null")

# Plain peft and transformers compute the same on every processor (see models/base.py).
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False


@cache
def settings(*overrides: str) -> config.TrainConfig:
    """The config that these words give a training run, every `auto` resolved."""
    return config.load(config.compose("train", overrides), overrides).resolved()


def run_context(folder: Path, **changes: Any) -> RunContext:
    """What the stages of a run in `folder` share on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = RunContext(
        seed=0,
        machine=Machine("cpu", "32-true", "fp32", "sdpa", 1),
        trainer=replace(settings().trainer, progress=False),
        loggers=[CsvLogger(folder / "metrics.csv")],
        end=1,
        folder=folder,
        cache=folder / ".cache",
        base={},
        probe=lambda: 0.0,
        reward=None,
    )
    return replace(plain, **changes)


def stage_record() -> StageRecord:
    """Of a stage that took three steps."""
    return StageRecord(
        steps=3,
        tokens=30,
        seconds=1.0,
        tokens_per_second=30.0,
        peak_memory_gib=0.5,
        train_loss=2.0,
        validation_loss=None,
        measures={},
        ended_by="steps",
        optimizer="adamw",
        dropout="as configured",
        warnings=[],
        summary={},
        cost={},
        forgetting={},
        artefact="sft",
        artefact_bytes=1,
    )


def tiny(family: str) -> nn.Module:
    """A network of a family with random weights, small and fp32, in evaluation mode."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
    if family == "bert":
        network: nn.Module = BertForPreTraining(
            BertConfig(
                **common,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
            )
        )
    elif family == "gpt2":
        network = GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=VOCABULARY)
        )
    else:
        config, model = {
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
            "llama": (LlamaConfig, LlamaForCausalLM),
        }[family]
        network = model(
            config(
                **common,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                tie_word_embeddings=family == "qwen3",
            )
        )
    for parameter in network.parameters():  # away from their special values, so that all matter
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of the tiny networks' ids: w0 pads, w1 ends a turn."""
    known = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=known, pad_token="w0", eos_token="w1")


@pytest.fixture(params=["qwen3", "llama", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
