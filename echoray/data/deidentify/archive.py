"""DICOM in, clean DICOM out: header (PS3.15 Basic Profile) and burned-in text on every frame."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from echoray.config import digest
from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.header import anonymise, identifiers, residue
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.deidentify.rules import rules_digest
from echoray.data.deidentify.text import known_pattern
from echoray.data.ledger import LEDGER_FILE, ledger_row
from echoray.data.sources.dicom import read_regions
from echoray.data.sources.index import ULTRASOUND, SourceFile
from echoray.data.sources.pixels import to_rgb
from echoray.data.sources.quiet import without_warnings
from echoray.errors import UsageError
from echoray.storage import Store
from echoray.types import Frame, Ledger, Progress, Rejection

if TYPE_CHECKING:
    from pydicom import Dataset

STEP = "deid-dicom"
SETTINGS_FILE, QUARANTINE_CSV = "deid.json", "quarantine.csv"
REVISION = 1  # count up when a change of the code changes what is written
# PS3.16, CID 7050: what (0012,0064) declares.
_PROFILE = (("113100", "Basic Application Confidentiality Profile"), ("113101", "Clean Pixel Data Option"))
# What describes stored values that are RGB now.
_STORED_ONLY = (
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "PaletteColorLookupTableUID",
    "WindowCenter", "WindowWidth", "VOILUTSequence", "ModalityLUTSequence", "RescaleIntercept",
    "RescaleSlope", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip


@dataclass(frozen=True)
class CleanFile:
    """Where a file's clean copy lies below the target."""

    path: str


class DicomCleaner:
    """Cleans one file at a time; holds the text reader and its cache, one per process."""

    def __init__(self, target: Store, key: bytes) -> None:
        self.target, self.key = target, key
        self.deidentifier = Deidentifier()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's row function: a path or a reason."""
        found = self.clean(SourceFile(**row["file"]))
        return {"path": "", "reason": found} if isinstance(found, str) else {"path": found.path, "reason": ""}

    def clean(self, file: SourceFile) -> CleanFile | str:
        """Write the file's clean copy unless it is there already; else the reason why there is none."""
        from pydicom import dcmread

        content = file.read_bytes()
        if content is None:
            return "unreadable_file"
        with without_warnings():
            try:
                dataset = dcmread(io.BytesIO(content))
                modality = dataset.get("Modality")
            except Exception:  # a damaged file may raise anything, and what was raised may quote the file
                return "not_dicom"
            if modality != ULTRASOUND:
                return "not_ultrasound"
            if "PixelData" not in dataset:
                return "no_pixels"
            # Named by its content: a copy is found out, and a changed file is another one.
            found = CleanFile(f"{keyed_hash(self.key, hashlib.sha256(content).hexdigest())[:32]}.dcm")
            if self.target.exists(found.path):
                return found
            cleaned = self._cleaned(dataset)
        if isinstance(cleaned, str):
            return cleaned
        self.target.write_bytes(found.path, cleaned)
        return found

    def _cleaned(self, dataset: Dataset) -> bytes | str:
        try:
            known, regions = identifiers(dataset), read_regions(dataset)
            clean = anonymise(dataset, self.key)
            if residue(clean, known_pattern(one for one in known if len(one) > 3)):
                return "header_residue"
        except Exception:
            return "malformed"
        try:
            pixels = _all_frames(dataset)
        except Exception:
            return "unreadable_pixels"
        frames = [Frame(one, regions) for one in pixels]
        clean_frames = self.deidentifier.redact_frames(frames, known)
        pixels = np.stack([one.frame.pixels for one in clean_frames])
        try:
            return _written(clean, pixels)
        except Exception:  # what is left of the header makes no DICOM file
            return "malformed"


def clean_archive(
    files: Sequence[SourceFile], target: Store, key: bytes, progress: Progress, *, num_workers: int = 1
) -> tuple[Ledger, list[Rejection]]:
    """Clean copies of ``files`` in ``target``, beside ledger.json and quarantine.csv.

    What an interrupted run has finished is kept. More than one worker needs a Ray session.
    """
    _claim(target, key)
    seen: set[str] = set()
    rejections: list[Rejection] = []
    for number, row in enumerate(_rows(files, target, key, num_workers)):
        reason = row["reason"] or ("duplicate_file" if row["path"] in seen else "")
        seen.add(row["path"])
        if reason:
            name = keyed_hash(key, files[number].name)
            rejections.append(Rejection(name, STEP, reason, f"file {number + 1} of {len(files)}, by name"))
        progress("de-identified files", number + 1, len(files))
    ledger = ledger_row(STEP, len(files), len(files) - len(rejections), rejections)
    target.write_bytes(QUARANTINE_CSV, _csv(rejections))
    content = [{**asdict(ledger), "quarantined": dict(ledger.quarantined)}]
    target.write_bytes(LEDGER_FILE, json.dumps(content, indent=1).encode())
    return ledger, rejections


def _rows(files: Sequence[SourceFile], target: Store, key: bytes, num_workers: int) -> Any:
    items = [{"file": vars(one)} for one in files]
    if num_workers == 1:
        return map(DicomCleaner(target, key), items)
    from echoray.data.streaming import streamed_by_actors

    return streamed_by_actors(items, len(items), DicomCleaner, (target, key), num_workers=num_workers)


def _claim(target: Store, key: bytes) -> None:
    """Say in ``target`` what made its files; UsageError where other rules or another key did."""
    settings = {"key": digest(key.hex())[:16], "rules": rules_digest(), "revision": REVISION}
    content = json.dumps(settings, indent=1).encode()
    if target.write_bytes(SETTINGS_FILE, content, if_absent=True):
        return
    if target.read_bytes(SETTINGS_FILE) != content:
        raise UsageError(
            f"{target.root} holds files that were cleaned with other rules or another key, expected the same",
            hint="name an empty folder, or the key that was used before",
        )


def _csv(rejections: Sequence[Rejection]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("record", "step", "reason", "detail"))
    table.writerows((one.record, one.step, one.reason, one.detail) for one in rejections)
    return text.getvalue().encode()


def _all_frames(dataset: Dataset) -> NDArray[np.uint8]:
    """Every frame as (N, H, W, 3); 16-bit values of all frames are windowed alike."""
    return np.array(to_rgb(dataset, range(int(dataset.get("NumberOfFrames") or 1))))


def _written(clean: Dataset, pixels_NHW3: NDArray[np.uint8]) -> bytes:
    """The file with these pixels, lossless (RLE), declared as free of identity and of burned-in text."""
    from pydicom import Dataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    for name in _STORED_ONLY:
        clean.pop(name, None)
    num_frames, clean.Rows, clean.Columns = pixels_NHW3.shape[:3]
    if num_frames > 1:
        clean.NumberOfFrames = num_frames
    clean.SamplesPerPixel, clean.PhotometricInterpretation, clean.PlanarConfiguration = 3, "RGB", 0
    clean.BitsAllocated = clean.BitsStored = 8
    clean.HighBit, clean.PixelRepresentation = 7, 0
    clean["PixelData"].VR = "OW"
    clean.PixelData = pixels_NHW3.tobytes()
    clean.BurnedInAnnotation = "NO"  # (0028,0301)
    codes = []
    for value, meaning in _PROFILE:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    clean.DeidentificationMethodCodeSequence = codes  # (0012,0064)
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    clean.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    target = io.BytesIO()
    clean.save_as(target, enforce_file_format=True)
    return target.getvalue()
