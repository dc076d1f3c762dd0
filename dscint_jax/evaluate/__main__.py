"""Runs the evaluation."""

from dscint_jax.command import run_command
from dscint_jax.evaluate.evaluate import main

run_command(main)
