"""Synthetic studies as DICOM: one US Image per frame and one Basic Text SR with the report.

Images: US Image Storage, Explicit VR Little Endian, RGB, one SeriesInstanceUID, with the Sequence of
Ultrasound Regions (0018,6011); PhysicalDeltaX/Y are in cm per pixel (PhysicalUnitsXDirection 3).
Report: Basic Text SR Storage in a series of its own. Its root CONTAINER is (18748-4, LN, "Diagnostic
imaging report") and contains two TEXT items: (121070, DCM, "Findings") and (121073, DCM, "Impression").
UIDs come from (seed, study index), so that the same corpus has the same UIDs.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoray.data.phantom.study import PhantomStudy, derive_rng
from echoray.storage import open_store
from echoray.types import Region

if TYPE_CHECKING:
    from pydicom import Dataset

US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
PRIVATE_GROUP, PRIVATE_CREATOR = 0x0099, "ECHORAY PHANTOM"
CENTIMETRES = 3


def write_study(study: PhantomStudy, folder: Path) -> list[Path]:
    """Write ``frame-N.dcm`` per frame and ``report.dcm`` into ``folder``; returns what was written.

    The faults act here: "no_report" leaves the SR out, "corrupt" damages every image file.
    """
    store = open_store(str(folder))
    images = [image_dataset(study, number) for number in range(len(study.frames))]
    files = {f"frame-{number}.dcm": to_bytes(image) for number, image in enumerate(images)}
    if study.truth.fault == "corrupt":
        rng = derive_rng(study.seed, study.truth.index, "corrupt")
        files = {name: _damage(content, rng) for name, content in files.items()}
    if study.truth.fault != "no_report":
        files["report.dcm"] = to_bytes(report_dataset(study, images))
    for name, content in files.items():
        store.write_bytes(name, content)
    return [folder / name for name in files]


def image_dataset(study: PhantomStudy, number: int) -> Dataset:
    """Frame ``number`` as a US Image."""
    frame = study.frames[number]
    image = _common(study, US_IMAGE, f"image {number}", "image series")
    image.Modality = "US"
    image.SeriesNumber, image.InstanceNumber = "1", str(number + 1)
    image.ImageType = ["ORIGINAL", "PRIMARY"]
    image.BodyPartExamined = {"vessel": "CAROTID", "gynecology": "UTERUS"}.get(
        study.truth.system, study.truth.system.upper()
    )
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.Rows, image.Columns = frame.pixels.shape[:2]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.LossyImageCompression = "00"
    image.BurnedInAnnotation = "YES"
    image.SequenceOfUltrasoundRegions = [_region_item(region) for region in frame.regions]
    image.PixelData = _even(np.ascontiguousarray(frame.pixels).tobytes())
    return image


def report_dataset(study: PhantomStudy, images: list[Dataset]) -> Dataset:
    """The report as a Basic Text SR that refers to the study's images."""
    report, visit = study.truth.report, study.truth.patient.visit
    document = _common(study, BASIC_TEXT_SR, "report", "report series")
    document.Modality = "SR"
    document.SeriesNumber, document.InstanceNumber = "2", "1"
    document.ContentDate, document.ContentTime = _date(visit.date), _time(visit.time)
    document.CompletionFlag, document.VerificationFlag = "COMPLETE", "UNVERIFIED"
    document.PerformedProcedureCodeSequence = []
    document.ReferencedPerformedProcedureStepSequence = []
    document.ValueType = "CONTAINER"
    document.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    document.ContinuityOfContent = "SEPARATE"
    document.ContentSequence = [
        _text_item(_code("121070", "DCM", "Findings"), report.findings),
        _text_item(_code("121073", "DCM", "Impression"), report.impression),
    ]
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(images)]
    return document


def to_bytes(dataset: Dataset) -> bytes:
    """The DICOM file (Part 10) of a dataset."""
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _common(study: PhantomStudy, sop_class: str, instance: str, series: str) -> Dataset:
    """Patient, study, equipment and SOP common attributes."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    truth = study.truth
    person, visit = truth.patient.patient, truth.patient.visit
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, _uid(study, instance)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(study, "study"), _uid(study, series)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = _date(visit.date)
    dataset.StudyTime = dataset.SeriesTime = _time(visit.time)
    dataset.AccessionNumber = visit.accession
    dataset.StudyID = f"{truth.index + 1}"
    dataset.StudyDescription = f"Ultrasound {truth.system}"
    dataset.Manufacturer, dataset.ManufacturerModelName = "EchoRay", "Phantom (synthetic)"
    dataset.InstitutionName = visit.hospital
    dataset.ReferringPhysicianName = dataset.PerformingPhysicianName = visit.doctor.replace(" ", "^")
    dataset.OperatorsName = visit.operator
    dataset.PatientName, dataset.PatientID = person.dicom_name, person.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = _date(person.birth_date), person.sex
    dataset.PatientAge = f"{visit.age:03d}Y"
    dataset.PatientTelephoneNumbers = person.phone
    private = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    private.add_new(0x01, "LO", person.name)
    private.add_new(0x02, "LO", f"preset {truth.system}")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = EXPLICIT_VR_LITTLE_ENDIAN
    return dataset


def _region_item(region: Region) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = (
        region.spatial_format,
        region.data_type,
        0,
    )
    # The tag's bounds are inclusive.
    item.RegionLocationMinX0, item.RegionLocationMinY0 = region.box.x0, region.box.y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = region.box.x1 - 1, region.box.y1 - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = CENTIMETRES
    item.PhysicalDeltaX = item.PhysicalDeltaY = (region.mm_per_px or 0.0) / 10
    return item


def _text_item(concept: Dataset, text: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [concept]
    item.TextValue = text
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _evidence(images: list[Dataset]) -> Dataset:
    from pydicom import Dataset

    def reference(image: Any) -> Dataset:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        return item

    series = Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ReferencedSOPSequence = [reference(image) for image in images]
    study = Dataset()
    study.StudyInstanceUID = images[0].StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


def _uid(study: PhantomStudy, part: str) -> str:
    """A UID below 2.25 (UUID derived, PS3.5 B.2) that depends on seed, index and part only."""
    word = hashlib.sha256(f"{study.seed}/{study.truth.index}/{part}".encode()).digest()[:16]
    return f"2.25.{int.from_bytes(word, 'big')}"


def _date(iso: str) -> str:
    return iso.replace("-", "")


def _time(clock: str) -> str:
    return clock.replace(":", "")


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


def _damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A file cut within its pixel data, or noise behind a DICOM preamble."""
    if rng.random() < 0.5:
        return content[: len(content) // 3]
    return b"\0" * 128 + b"DICM" + rng.bytes(4096)
