"""Where the program computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drbode.config import METHODS
from drbode.models import machine
from tests.conftest import settings

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def number_printed(code: str, **variables: str) -> int:
    """By a program of its own: an allocator cannot be put back."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="has no huge pages"
)
def test_large_tensors_lie_in_huge_pages() -> None:
    code = """
import drbode.train, torch
held = torch.ones(64 << 20, dtype=torch.uint8)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages:")))
"""
    assert number_printed(code) > 32 << 10  # KiB


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_of_freed_tensors_is_kept_for_the_next() -> None:
    code = """
import resource, torch
from drbode.models.machine import keep_memory
keep_memory()
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(6)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    pages = 6 * (16 << 20) // 4096  # of all tensors
    assert number_printed(code, THP_MEM_ALLOC_ENABLE="0") < pages


def test_on_a_gpu_frozen_weights_are_bf16_and_a_quantized_base_has_a_paged_optimizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "keep_memory", lambda: None)
    config = settings("trainer.threads=1")
    frozen = [machine.resolve(config.trainer, config.model, traits) for traits in METHODS.values()]
    assert [one.dtype == "bf16" for one in frozen] == [m.adapter for m in METHODS.values()]
    on_gpu = machine.resolve(config.trainer, config.model, None)  # nothing trains
    assert on_gpu.dtype == "bf16"
    paged = {name: on_gpu.optimizer("sft", config.sft, m) for name, m in METHODS.items()}
    assert paged.pop("qlora") == "paged_adamw_32bit"
    assert set(paged.values()) == {"adamw"}
