"""Sets in the files that torchvision knows how to fetch."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torchvision
from typing_extensions import override

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.datamodule import ImageDataModule


class TorchvisionFiles(ImageDataModule):
    """Base of data modules that read the files of a data set of torchvision, laid out under ``root`` as torchvision does.

    Args:
        root: Folder that torchvision would be given.
        download: Fetch the files first, by torchvision, if they are not there.
        val_size: What the training set gives to validation; see :class:`ImageDataModule`.
        **arguments: The others of :class:`ImageDataModule`.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name: ClassVar[str]
    """The class of ``torchvision.datasets``."""

    def __init__(self, root: str = "data", download: bool = False, val_size: int | float = 5000, **arguments: Any) -> None:
        super().__init__(val_size=val_size, **arguments)
        self.root = root
        self.download = download

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the files are."""

    @property
    @override
    def has_test(self) -> bool:
        return True

    @override
    def prepare_data(self) -> None:
        if self.download:
            try:
                self.fetch(getattr(torchvision.datasets, self.torchvision_name))
            except (RuntimeError, OSError) as error:
                raise DataError(f"{type(self).__name__} could not be downloaded to {self.root!r}: {error}") from error

    def fetch(self, source: type) -> None:
        """Have torchvision's class fetch the files that are not there yet."""
        source(self.root, download=True)

    def file(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            DataError: If there is none.
        """
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing. Put the file there, point root elsewhere, or set download: true.")
        return path


def damaged(path: Path) -> DataError:
    """Return the error that says that a file does not hold what it should."""
    return DataError(f"{path} is damaged or truncated ({path.stat().st_size} bytes). Delete it and fetch it again.")
