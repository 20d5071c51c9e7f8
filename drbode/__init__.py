"""Every way to fine-tune a language model, one command each, and a table one can believe."""

import logging
import os

__version__ = "0.1.0"

# On processors that could use it, bitsandbytes warns at every start of a package it can do without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Has PyTorch ask Linux for huge pages for tensors on a CPU. It is read at its first allocation,
# which some package's import makes. See `keep_memory` in drbode/models/machine.py.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
