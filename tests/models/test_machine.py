"""Where the program computes."""

import platform
import subprocess
import sys

import pytest

FRAYED = """
import sys
import torch
from drbode.models.machine import give_back_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "given":
    give_back_memory()
torch.ones(5 << 20)  # 20 MiB, from where on glibc of itself keeps what is as large
before, kept = resident(), []
large = []
for _ in range(20):
    large.append(torch.ones(4 << 20))
    kept.append(torch.ones(1 << 10))  # between each two, so that the heap cannot shrink
del large
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_tensors_are_the_systems_again() -> None:
    def held(how: str) -> int:
        found = subprocess.run(
            [sys.executable, "-c", FRAYED, how], capture_output=True, text=True, check=True
        )
        return int(found.stdout)

    assert held("given") < 40 < 120 < held("left")  # MiB, of 320
