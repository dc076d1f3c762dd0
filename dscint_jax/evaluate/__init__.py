"""Evaluation of a checkpoint on a split."""
