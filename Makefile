# The newcomer's words. Each makes the environment first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: train test check benchmark

train: $(INSTALLED)
	$(BIN)/python -m drbode.train 'stages=[sft,dpo]'

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Speed beside the peers, on the CPU; wants a machine with nothing else to do.
BENCHMARKS := experiments/benchmarks
benchmark: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python $(BENCHMARKS)/startup.py
	$(BIN)/python $(BENCHMARKS)/sft.py --rows 48 --rounds 2
	$(BIN)/python $(BENCHMARKS)/dpo.py --rows 24 --rounds 2
	$(BIN)/python $(BENCHMARKS)/reward.py --rows 64 --rounds 2
	$(BIN)/python $(BENCHMARKS)/ppo.py --rows 32 --rounds 1
	$(BIN)/python $(BENCHMARKS)/sft.py --shape 0.6b-4 --rows 8 --rounds 1 --peers "trl,trl single"
	$(BIN)/python $(BENCHMARKS)/dpo.py --shape 0.6b-4 --rows 8 --rounds 1 --peers trl
	$(BIN)/python $(BENCHMARKS)/reward.py --shape 0.6b-4 --rows 8 --rounds 1 --peers trl
	$(BIN)/python $(BENCHMARKS)/sft.py --shape 0.6b-4 --row-tokens 2048 --rows 1 --rows-a-step 1 \
		--rounds 1 --peers trl
	$(BIN)/python $(BENCHMARKS)/shares.py
	$(BIN)/python $(BENCHMARKS)/multiple_choice.py
	$(BIN)/python $(BENCHMARKS)/fewshot.py --rounds 1

# torch first and alone: its constraint then holds for all that asks for "torch".
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $(INSTALLED)
