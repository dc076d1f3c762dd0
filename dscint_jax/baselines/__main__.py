"""Runs the shortcut baselines."""

from dscint_jax.baselines.shortcuts import main
from dscint_jax.command import run_command

run_command(main)
