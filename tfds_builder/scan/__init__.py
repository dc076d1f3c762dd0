"""python -m tfds_builder.scan: proposes a manifest for a folder of images."""
