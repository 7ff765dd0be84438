"""DICOM headers: every identifying string is known in all its forms, and none is left after anonymising."""

from __future__ import annotations

import datetime
import struct
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException

from echoray.data.deidentify.header import anonymise, identifiers, study_date
from echoray.data.deidentify.text import known_pattern
from echoray.data.phantom import PhantomStudy, synthesize_study
from echoray.data.phantom.dicom import image_dataset, report_dataset, to_bytes
from echoray.data.sources.dicom import read_regions
from echoray.data.sources.quiet import without_warnings
from echoray.data.sources.samples import package_samples

KEY = b"a key of this test"
SECRETS = ("ZZ998877", "Nested", "Observer", "Alias", "likes tea", "555-0123", "ACC777", "SN12345", "Stefan")


@pytest.fixture(scope="module")
def study() -> PhantomStudy:
    return synthesize_study(1, seed=11, language="en", width=320, height=240)


def with_secrets(study: PhantomStudy) -> Dataset:
    """The study's image with more identity: free text, nested sequences, nested private tags."""
    image = image_dataset(study, 0)
    other = Dataset()
    other.PatientID = "ZZ998877"
    block = other.private_block(0x0099, "ECHORAY PHANTOM", create=True)
    block.add_new(0x01, "LO", "Nested Secret")
    image.OtherPatientIDsSequence = [other]
    staff = Dataset()
    staff.PersonName, staff.InstitutionName = "Nested^Observer", "Nested Hospital"
    image.OperatorIdentificationSequence = [staff]
    request = Dataset()
    request.AccessionNumber, request.RequestedProcedureDescription = "ACC777", "for Stefan"
    image.RequestAttributesSequence = [request]
    image.PatientComments, image.ImageComments = "likes tea", "call 555-0123"
    image.OtherPatientNames, image.DeviceSerialNumber = "Alias^One", "SN12345"
    image.SeriesDescription = image.ProtocolName = "Stefan"
    return image


def everything(dataset: Dataset) -> str:
    return str(dataset) + "".join(str(element.value) for element in dataset.iterall() if element.VR != "OB")


def test_names_dates_and_numbers_are_known_in_the_forms_people_write() -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^Anna Lena=张^小红"
    dataset.PatientID, dataset.InstitutionName = "A-77", "St Maren Hospital"
    dataset.PatientBirthDate, dataset.AcquisitionDateTime = "19691208", "20240305101500.12"
    dataset.OperatorsName = ["KJ", "Lee^Bo"]
    found = identifiers(dataset)
    wanted = {
        "Müller", "Anna Lena Müller", "Muller", "MüllerAnnaLena", "张小红", "小红", "KJ", "Bo Lee", "A-77",
        "St Maren Hospital", "19691208", "1969-12-08", "08.12.1969", "12/08/1969", "1969年12月8日",
        "2024-03-05",
    }  # fmt: skip
    assert wanted <= set(found)
    assert len(found) == len(set(found)) and min(map(len, found)) >= 2


@pytest.mark.parametrize(
    ("written", "want"),
    [("20230804", datetime.date(2023, 8, 4)), ("", None), ("20231304", None), ("2023", None), (None, None)],
)
def test_the_study_date_is_a_date_or_nothing(written: str | None, want: datetime.date | None) -> None:
    dataset = Dataset()
    if written is not None:
        with without_warnings():
            dataset.add_new("StudyDate", "DA", written)
    assert study_date(dataset) == want


def test_the_phantom_header_and_nested_items_are_all_known(study: PhantomStudy) -> None:
    found = identifiers(with_secrets(study))
    person, visit = study.truth.patient.patient, study.truth.patient.visit
    for text in (*study.truth.patient.strings(), *person.dicom_name.split("^"), visit.date.replace("-", "")):
        assert text in found, text
    assert {"ZZ998877", "Nested Observer", "ACC777", "Alias"} <= set(found)


def test_a_malformed_number_hides_no_name() -> None:
    delta = struct.pack("<HH2sH", 0x0018, 0x602C, b"FD", 4) + b"\0\0\0\0"  # a double of four bytes
    name = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 12) + b"Okafor^Grace"
    dataset = dcmread(BytesIO(name + delta), force=True)
    assert "Grace Okafor" in identifiers(dataset)
    with pytest.raises(BytesLengthException):
        _ = dataset.PhysicalDeltaX


def test_anonymising_leaves_no_secret_anywhere_and_keeps_the_regions(study: PhantomStudy) -> None:
    image = with_secrets(study)
    before = everything(image)
    assert all(text in before for text in SECRETS)  # else their absence shows nothing
    clean = anonymise(image, KEY)
    after = everything(clean)
    known = [text for text in identifiers(image) if len(text) > 2]
    assert not [text for text in (*SECRETS, *known) if text in after]
    assert not [element for element in clean.iterall() if element.tag.is_private]
    assert clean.PatientIdentityRemoved == "YES" and "PS3.15" in clean.DeidentificationMethod
    assert read_regions(clean) == read_regions(image) == study.frames[0].regions
    assert (clean.pixel_array == study.frames[0].pixels).all()
    assert everything(image) == before
    assert dcmread(BytesIO(to_bytes(clean))).PatientIdentityRemoved == "YES"


def test_instance_uids_are_replaced_everywhere_and_stay_linked(study: PhantomStudy) -> None:
    image = image_dataset(study, 0)
    report = report_dataset(study, [image])
    clean_image, clean_report = anonymise(image, KEY), anonymise(report, KEY)
    originals = {image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID, report.SOPInstanceUID}
    for one in (clean_image, clean_report):
        used = {str(element.value) for element in one.iterall() if element.VR == "UI"}
        assert not used & originals
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
    evidence = clean_report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == clean_image.StudyInstanceUID == clean_report.StudyInstanceUID
    reference = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == clean_image.SOPInstanceUID


def test_real_headers_lose_their_hospital_and_keep_their_regions() -> None:
    for sample in package_samples():
        dataset = dcmread(BytesIO(sample.read_bytes()), stop_before_pixels=True)
        known = [text for text in identifiers(dataset) if len(text) > 3]
        assert known, sample.name
        clean = anonymise(dataset, KEY)
        kept = "\n".join(str(element.value) for element in clean.iterall() if element.VR not in ("OB", "OW"))
        # As whole words: "MARY" is not what ImageType's "PRIMARY" gives away.
        pattern = known_pattern(known)
        assert pattern is not None and not pattern.search(kept), sample.name
        assert read_regions(clean) == read_regions(dataset)
