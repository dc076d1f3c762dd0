"""The TFDS dataset package `scintigraphy`."""
