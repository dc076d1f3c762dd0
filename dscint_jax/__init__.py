"""Deep learning on whole-body bone scintigraphy in JAX and Flax."""
