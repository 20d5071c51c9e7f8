"""Every way to fine-tune a language model, one command each, and a table one can believe."""

import logging

__version__ = "0.1.0"

# On processors that could use it, bitsandbytes warns at every start of a package it can do without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
