"""Where the program computes: every `auto` that depends on the machine, resolved once."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from drbode.config import (
    BadInput,
    MethodTraits,
    ModelConfig,
    Optimizer,
    QloraConfig,
    Stage,
    StageConfig,
    TrainerConfig,
)
from drbode.models.base import DTYPES, Attention
from drbode.system import c_library

# Options of glibc's mallopt, from its malloc.h, and what they are set to, in bytes.
M_TRIM_THRESHOLD, KEPT = -1, 1 << 30
M_MMAP_THRESHOLD, LARGE = -3, 32 << 20
THREADS = torch.get_num_threads()  # PyTorch's choice, before a job of this process set another


@dataclass(frozen=True)
class Machine:
    accelerator: Literal["cpu", "cuda"]
    precision: Literal["32-true", "bf16-mixed"]
    dtype: Literal["fp32", "bf16"]
    attention: Attention
    threads: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def autocast(self) -> torch.autocast:
        """The context in which Lightning's precision computes, for passes outside its Trainer."""
        return torch.autocast(
            self.accelerator, torch.bfloat16, enabled=self.precision == "bf16-mixed"
        )

    def optimizer(self, stage: Stage, settings: StageConfig, method: MethodTraits) -> Optimizer:
        """What a stage's `optimizer: auto` comes to. Raises BadInput for a paged one on a CPU."""
        if settings.optimizer == "auto":
            paged = method.quantizes and self.accelerator == "cuda"
            return "paged_adamw_32bit" if paged else "adamw"
        if settings.optimizer != "adamw" and self.accelerator != "cuda":
            raise BadInput(
                f"{stage}.optimizer: {settings.optimizer} moves its state between GPU and CPU "
                "memory and there is no CUDA device; set it to auto or adamw"
            )
        return settings.optimizer

    def quantization(self, settings: QloraConfig) -> QloraConfig:
        """The same with its compute dtype resolved."""
        if settings.compute_dtype != "auto":
            return settings
        return replace(settings, compute_dtype="bf16" if self.accelerator == "cuda" else "fp32")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def keep_memory() -> None:
    """Has glibc keep the memory of freed tensors for those that come next.

    Otherwise it hands back to the kernel much of what a step frees, and gets it page by page and
    zeroed in the next one. What is above 32 MiB goes back as it does of itself. That the heap does
    not fray owes to huge pages, which `drbode/__init__.py` asks for: tensors then begin at
    multiples of 2 MiB. Another C library is left as it is.
    """
    if (library := c_library()) is not None:
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
        library.mallopt(M_MMAP_THRESHOLD, LARGE)


def resolve(trainer: TrainerConfig, model: ModelConfig, method: MethodTraits | None) -> Machine:
    """What `auto` comes to here; sets the number of CPU threads.

    Weights that train are kept in fp32 and computed with in bf16; frozen ones are held in bf16 on a
    GPU. `method` None: nothing trains. Raises BadInput where a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if trainer.accelerator == "cuda" and not cuda:
        raise BadInput("trainer.accelerator: cuda was asked for and PyTorch finds no CUDA device")
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if cuda else "cpu"
    on_gpu = accelerator == "cuda"
    precision = trainer.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu else "32-true"
    dtype = model.dtype
    if dtype == "auto":
        dtype = "bf16" if on_gpu and (method is None or method.adapter) else "fp32"
    attention = model.attention
    if attention == "auto":
        attention = "flex" if on_gpu else "sdpa"
    if attention == "flex" and not on_gpu and method is not None:
        raise BadInput("model.attention: flex trains on CUDA only; set model.attention=sdpa here")
    keep_memory()
    torch.set_num_threads(THREADS if trainer.threads == "auto" else trainer.threads)
    return Machine(accelerator, precision, dtype, attention, torch.get_num_threads())
