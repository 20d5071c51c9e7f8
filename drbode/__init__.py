"""Every way to fine-tune a language model, one command each, and a table one can believe."""

__version__ = "0.1.0"
