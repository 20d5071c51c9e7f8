"""What a run costs: its clock and memory, and the operations that its work needs at least."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workload import SHAPES, Setting, Shape, Work, batches


class Clock:
    """Seconds of the training loop, and memory from the point where everything is loaded."""

    def __init__(self, setting: Setting, began: float) -> None:
        self.setting = setting
        self.process_began = began
        self.before = 0.0  # seconds of passes ahead of the loop
        self.began = self.ended = self.loaded_gib = self.first_step = 0.0

    def loaded(self) -> None:
        """Network and adapter are built: from here on memory counts."""
        if self.setting.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.loaded_gib = torch.cuda.memory_allocated() / (1 << 30)
            return
        # The kernel forgets the peak so far; where it refuses, a peak would be that of the imports.
        Path("/proc/self/clear_refs").write_text("5")
        self.loaded_gib = _resident_gib("VmRSS")

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Counts a pass that is made ahead of the loop."""
        began = self._now()
        yield
        self.before += self._now() - began

    def start(self) -> None:
        self.began = self._now()

    def step_done(self) -> None:
        self.ended = self._now()
        if not self.first_step:
            self.first_step = time.time() - self.process_began

    def _now(self) -> float:
        if self.setting.on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + self.ended - self.began

    @property
    def peak_gib(self) -> float:
        if self.setting.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated() / (1 << 30)
        return _resident_gib("VmHWM")


def _resident_gib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / (1 << 20)
    raise RuntimeError(f"/proc/self/status has no {name}; the memory is measured on Linux only")


def matrix_rate(setting: Setting) -> float:
    """Operations a second of large matrix products in the precision of the training."""
    import torch

    size = 8192 if setting.on_gpu else 1024
    dtype = torch.bfloat16 if setting.on_gpu else torch.float32
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    clock, taken = Clock(setting, 0), []
    for _ in range(12):
        clock.before = 0.0
        with clock.ahead():
            torch.mm(a, b)
        taken.append(clock.before)
    return 2 * size**3 / statistics.median(taken[2:])


def operations(work: Work, arm: str, setting: Setting, trees: Sequence[Any]) -> float:
    """Multiplications and additions of an arm's frozen matrices and attention, at least.

    2 a parameter and token forward, 2 backward, for no frozen matrix has a gradient. drbode reads a
    prompt once and applies the head where something is predicted; a peer reads every row whole and
    padded, with its prompt, and applies the head everywhere. Attention is causal. What is written
    counts as a forward pass.
    """
    shape = SHAPES[setting.shape]
    if arm == "drbode":
        matrices, attention = forward(shape, trees, work.head)
    else:
        lengths = _peer_lengths(work.peers[arm], setting, trees)
        tokens = sum(lengths)
        matrices, attention = _products(
            shape, tokens, tokens if work.head else 0, sum(map(_causal, lengths))
        )
    return (2 * work.epochs + work.forward) * matrices + (
        3 * work.epochs + work.forward
    ) * attention


def forward(shape: Shape, trees: Sequence[Any], head: bool = True) -> tuple[float, float]:
    """Operations of drbode's one pass: of the matrices, and of the attention."""
    seen = 0
    for tree in trees:
        prompt = len(tree.prompt)
        seen += _causal(prompt)
        seen += sum(
            len(completion.ids) * prompt + _causal(len(completion.ids))
            for completion in tree.completions
        )
    tokens = sum(tree.tokens for tree in trees)
    predicted = sum(tree.supervised for tree in trees) if head else 0
    return _products(shape, tokens, predicted, seen)


def _products(shape: Shape, tokens: int, predicted: int, seen: int) -> tuple[float, float]:
    """Operations of a pass; `seen` counts pairs of a token and one that it sees."""
    matrices = 2 * (shape.layer_parameters * tokens + shape.width * shape.vocabulary * predicted)
    return matrices, 4 * shape.layers * shape.heads * shape.head_dim * seen


def _causal(length: int) -> int:
    """How many pairs of a token and one that it sees there are in a sequence."""
    return length * (length + 1) // 2


def _peer_lengths(arm: Mapping[str, Any], setting: Setting, trees: Sequence[Any]) -> list[int]:
    """Of the sequences that trl runs, as long as it makes them: those of a batch are padded."""
    size = batches(setting)[arm["batch"]]["per_device_train_batch_size"]
    lengths: list[int] = []
    for at in range(0, len(trees), size):
        batch = [len(t.prompt) + len(c.ids) for t in trees[at : at + size] for c in t.completions]
        lengths += batch if arm.get("padding_free") else [max(batch)] * len(batch)
    return lengths
