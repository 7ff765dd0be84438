"""Real ultrasound files that installed packages ship; nothing is downloaded.

Single frames and cines of several makers, with burned-in text, palettes, JPEG and JPEG 2000.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PYDICOM_DATA = (
    "US1_UNCR.dcm", "US1_UNCI.dcm", "US1_J2KR.dcm", "US1_J2KI.dcm", "gdcm-US-ALOKA-16.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm", "OBXXXX1A.dcm",
)  # fmt: skip
# Below deid_data/data/ultrasounds; the package is optional, and two of its cines are zipped.
DEID_DATA = (
    "GREYSCALE_CINE.zip", "GREYSCALE_IMAGE.dcm", "RGB_CINE.zip", "RGB_IMAGE.dcm", "ultrasound-multiframe.dcm",
)  # fmt: skip


@dataclass(frozen=True)
class PackageSample:
    """One DICOM file: ``path`` itself, or the member ``name`` of the zip file at ``path``."""

    name: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """Size of the DICOM file, unpacked."""
        if not self._zipped:
            return self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.name).file_size

    def read_bytes(self) -> bytes:
        """The whole DICOM file."""
        if not self._zipped:
            return self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self.name)

    @property
    def _zipped(self) -> bool:
        return self.path.suffix == ".zip"


def package_samples() -> list[PackageSample]:
    """The samples of pydicom-data, and those of deid-data where it is installed."""
    from pydicom.data import get_testdata_file

    found = [get_testdata_file(name, download=False) for name in PYDICOM_DATA]
    paths = [Path(str(path)) for path in found if path is not None]
    package = find_spec("deid_data")
    places = package.submodule_search_locations if package else None
    for place in places or ():
        folder = Path(place) / "data" / "ultrasounds"
        paths += [folder / name for name in DEID_DATA if (folder / name).is_file()]
    return [PackageSample(f"{path.stem}.dcm", path) for path in paths]
