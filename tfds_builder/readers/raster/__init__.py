"""Pictures (PNG, TIFF, JPEG) as views: `is_raster`, `check_raster`, `read_raster`."""

from tfds_builder.readers.raster.reader import check_raster, is_raster, read_raster
