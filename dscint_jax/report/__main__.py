"""Runs the report."""

from dscint_jax.command import run_command
from dscint_jax.report.page import main

run_command(main)
