"""The builder by which TFDS itself finds the data set `scintigraphy`.

In: a data set on disk, or manual_dir/manifest.csv, under `tfds build`. Out: a TFDS builder. It
reads; a build is `conductor.build_data_set`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder.commandline.errors import UserError
from tfds_builder.scintigraphy.conductor import Request, build_data_set
from tfds_builder.scintigraphy.data_set import (
    CONFIG_DESCRIPTIONS,
    RELEASE_NOTES,
    VERSION,
    data_set_info,
)
from tfds_builder.shards.plan import Options
from tfds_builder.shards.records import features


class Builder(tfds.core.GeneratorBasedBuilder):
    """Whole-body bone scintigraphy, in the classes of its manifest, split by patient."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = RELEASE_NOTES
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=text)
        for name, text in CONFIG_DESCRIPTIONS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put manifest.csv, the files that it names, and pseudonym.key into a folder outside "
        "data_dir, and give it as manual_dir."
    )

    @property
    def _config_name(self) -> str:
        if self.builder_config is None:
            raise RuntimeError("a builder that has configurations was made without one")
        return self.builder_config.name

    def _info(self) -> tfds.core.DatasetInfo:
        return data_set_info(self, features(self._config_name))

    # TFDS wraps its own, which hides that it is a function.
    def download_and_prepare(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, *, download_config: tfds.download.DownloadConfig | None = None, **_: Any
    ) -> None:
        """Builds the data set from manual_dir/manifest.csv, where it is not there.

        `download_config` holds manual_dir, and whether a data set that is there is replaced. Raises
        UserError where manual_dir is not given, and on anything that ends a build.
        """
        download_config = download_config or tfds.download.DownloadConfig()
        overwrite = tfds.download.GenerateMode(download_config.download_mode).overwrite_dataset
        if self.data_path.exists() and not overwrite:
            return
        if not download_config.manual_dir:
            raise UserError(f"manual_dir is not given. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        build_data_set(
            Request(
                manifest=Path(download_config.manual_dir) / "manifest.csv",
                data_dir=Path(self.data_dir_root),
                options=Options(config=self._config_name),
                overwrite=overwrite,
            )
        )
        self.info.read_from_directory(self.data_dir)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        raise NotImplementedError("build_data_set writes the records")

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        raise NotImplementedError("build_data_set writes the records")
