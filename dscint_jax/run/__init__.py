"""The files of a run: config, provenance, checkpoints, and who may write them."""
