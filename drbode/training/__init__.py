"""Stages: one LightningModule an objective, run one after the other on one policy."""
