#!/usr/bin/env bash
# lightning's ModelCheckpoint keeps other weights as best than those that had the best score.
#
# Expected: with monitor= and every_n_train_steps=, the file at best_model_path holds the weights
# whose validation gave best_model_score, or there is an error where that cannot be.
# What happens: it saves before the validation of the same step, and at steps that have none; for
# the weights of now it takes the score of the last validation. The file bears that score in its
# name and is ranked by it among the top k; the weights that had it are lost. So it is too where one
# saves and validates in the same rhythm: the best file is then one whole interval late. Nothing is
# said.
# With: torch 2.13.0, lightning 2.6.6.
# Whom it hurts: whoever keeps the best by a number of steps. Fine-tuning overfits within a fraction
# of an epoch; "the best" is then reported with a score that it does not have, and a later
# evaluation of it does not reproduce.
# What avoids it: two callbacks, one with every_n_train_steps and without monitor, and one with
# monitor and save_on_train_epoch_end=False and no step rhythm, which saves at validations alone.
#
# Printed:
#
#   torch 2.13.0 lightning 2.6.6
#   validated every 4 steps, saved every 3 steps : step=9-loss=0.0.ckpt, best_model_score 0.0, validated again 0.1
#   validated every 4 steps, saved every 5 steps : step=10-loss=0.0.ckpt, best_model_score 0.0, validated again 0.2
#   validated every 4 steps, saved every 4 steps : step=12-loss=0.0.ckpt, best_model_score 0.0, validated again 0.4
#   validated every 4 steps, saved at validations: step=8-loss=0.0.ckpt, best_model_score 0.0, validated again 0.0
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 lightning==2.6.6
venv/bin/python - <<'PY'
import logging
import os
import sys
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
print("torch", torch.__version__.split("+")[0], "lightning", lightning.__version__)


class Module(lightning.LightningModule):
    """Its one weight counts the steps; it is best after the eighth, and overfits from then on."""

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return -self.steps.sum()

    def validation_step(self, batch, index):
        self.log("loss", (self.steps.sum() - 8).abs() / 10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def rows(count):
    return DataLoader(torch.zeros(count, 1), batch_size=1)


quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
         "enable_model_summary": False}
as_described = True
for every in (3, 5, 4, None):
    keep = ModelCheckpoint(
        dirpath=f"every-{every}", monitor="loss", filename="{step}-{loss:.1f}",
        every_n_train_steps=every,
        save_on_train_epoch_end=None if every else False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # none of which is about this
        trainer = lightning.Trainer(max_epochs=1, val_check_interval=4, callbacks=[keep], **quiet)
        trainer.fit(Module(), rows(20), rows(1))
        again = lightning.Trainer(**quiet).validate(
            Module(), rows(1), ckpt_path=keep.best_model_path, verbose=False
        )[0]["loss"]
    best = float(keep.best_model_score)
    rhythm = f"every {every} steps" if every else "at validations"
    print(f"validated every 4 steps, saved {rhythm:14}: {os.path.basename(keep.best_model_path)}, "
          f"best_model_score {best:.1f}, validated again {again:.1f}")
    as_described &= (abs(best - again) > 0.05) == (every is not None)
print("as described:", as_described)
sys.exit(not as_described)
PY
