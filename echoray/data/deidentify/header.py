"""DICOM headers: what identifies a patient in them, and its removal (PS3.15, Annex E, Basic Profile)."""

from __future__ import annotations

import copy
import datetime
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from echoray.data.deidentify.keys import keyed_uid

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

# Attributes whose values are looked for, literally, in burned-in and report text, beside all names and dates.
STRINGS = frozenset((
    "PatientID", "OtherPatientIDs", "AccessionNumber", "InstitutionName", "InstitutionAddress", "StationName",
    "InstitutionalDepartmentName", "PatientTelephoneNumbers", "PatientAddress",
))  # fmt: skip
# Value representations that hold people's words.
_TEXTS = frozenset(("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_METHOD = "EchoRay: PS3.15 Basic Profile, burned-in text removed by rules"
_ICON = 0x00880200  # Icon Image Sequence
_STANDARD_UID = "1.2.840.10008."  # names SOP classes and transfer syntaxes, never an instance


def identifiers(dataset: Dataset) -> tuple[str, ...]:
    """The header's identifying strings in the forms in which they are written elsewhere, without duplicates.

    Every person's name (PN) and date (DA, DT) counts, in nested sequences as well. Short values (an
    operator's initials) are included; the caller matches them as whole words.
    """
    found: dict[str, None] = {}
    for element in _public_elements(dataset):
        values = element.value if element.VM > 1 else [element.value]
        for value in (str(one).strip() for one in values if one is not None):
            if element.VR == "PN":
                found |= dict.fromkeys(_name_forms(value))
            elif element.VR in ("DA", "DT"):
                found |= dict.fromkeys(_date_forms(value))
            elif element.keyword in STRINGS:
                found[value] = None
    return tuple(value for value in found if len(value) >= 2)


def study_date(dataset: Dataset) -> datetime.date | None:
    """The Study Date (0008,0020), or None where there is none or it is no date."""
    return day_of(str(dataset.get("StudyDate") or "").strip())


def day_of(value: str) -> datetime.date | None:
    """The date of YYYYMMDD, or None where ``value`` is anything else."""
    try:
        return datetime.datetime.strptime(value, "%Y%m%d").date()
    except ValueError:
        return None


def anonymise(dataset: Dataset, key: bytes) -> Dataset:
    """A copy without identifying attributes, nested sequences, private tags, icons and overlays included.

    Instance UIDs are replaced everywhere by keyed ones: the same one by the same one, in every process.
    """
    from dicomanonymizer import anonymize_dataset
    from dicomanonymizer.simpledicomanonymizer import dictionary as library_uids

    clean = copy.deepcopy(dataset)
    uids = {str(uid) for element in _public_elements(clean) for uid in _uids(element)}
    if hasattr(clean, "file_meta"):
        uids |= {str(uid) for element in _public_elements(clean.file_meta) for uid in _uids(element)}
    new = {uid: uid if uid.startswith(_STANDARD_UID) else keyed_uid(key, uid) for uid in uids}
    library_uids.update(new)  # where the library looks for a UID's replacement before it draws a random one
    try:
        anonymize_dataset(clean, delete_private_tags=True)
    finally:
        library_uids.clear()
    for element in list(_public_elements(clean)):
        found = _uids(element)
        if any(new.get(uid, uid) != uid for uid in found):  # references within sequences, which it leaves
            element.value = [new.get(uid, uid) for uid in found] if len(found) > 1 else new[found[0]]
    _drop_pictures(clean)
    clean.remove_private_tags()
    clean.PatientIdentityRemoved = "YES"  # (0012,0062)
    clean.DeidentificationMethod = _METHOD  # (0012,0063)
    return clean


def residue(dataset: Dataset, known: re.Pattern[str] | None) -> bool:
    """Whether a text of the header (or a private tag) is left that names the patient."""
    for element in dataset.iterall():
        if element.tag.is_private:
            return True
        if known and element.VR in _TEXTS and known.search(str(element.value)):
            return True
    return False


def _drop_pictures(dataset: Dataset) -> None:
    """Remove what may show burned-in text beside the pixels: icons (0088,0200), curves and overlays."""
    for tag in list(dataset.keys()):
        if tag.group >> 8 in (0x50, 0x60) or tag == _ICON:
            del dataset[tag]
        elif dataset[tag].VR == "SQ":
            for item in dataset[tag].value:
                _drop_pictures(item)


def _public_elements(dataset: Dataset) -> Iterator[DataElement]:
    """Every element with a standard meaning and a readable value, sequences' items included."""
    from pydicom.errors import BytesLengthException

    for tag in sorted(dataset.keys()):
        if tag.is_private:
            continue
        try:
            element = dataset[tag]
        except (BytesLengthException, ValueError):  # a malformed number; names, dates and texts always parse
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _public_elements(item)
        else:
            yield element


def _uids(element: DataElement) -> list[str]:
    if element.VR != "UI" or not element.value:
        return []
    return [str(uid) for uid in (element.value if element.VM > 1 else [element.value])]


def _name_forms(value: str) -> list[str]:
    """A name's parts and their combinations, as written and without accents; "family^given=..." (PN)."""
    forms = []
    for group in value.split("="):
        components = [" ".join(part.split()) for part in re.split(r"[\^,]+", group) if part.strip()]
        forms += " ".join(components).split()
        for order in (components, components[::-1]):
            forms += [" ".join(order), "".join(order).replace(" ", "")]
    plain = (unicodedata.normalize("NFKD", form).encode("ascii", "ignore").decode() for form in forms)
    return [*forms, *(form for form in plain if form.strip())]


def _date_forms(value: str) -> list[str]:
    """A DICOM date or date and time (YYYYMMDD...) as people write it; anything else unchanged."""
    if not re.match(r"\d{8}", value):
        return [value]
    year, month, day = value[:4], value[4:6], value[6:8]
    return [
        year + month + day,
        *(sign.join((year, month, day)) for sign in "-/."),
        f"{day}.{month}.{year}",
        f"{day}/{month}/{year}",
        f"{month}/{day}/{year}",
        f"{year}年{int(month)}月{int(day)}日",
    ]


def written_forms(*, names: Iterable[str], dates: Iterable[str], strings: Iterable[str]) -> tuple[str, ...]:
    """Identifying values of a table in the forms in which they are written elsewhere, without duplicates."""
    forms = [
        *(form for name in names for form in _name_forms(name)),
        *(form for date in dates for form in _date_forms(date)),
        *strings,
    ]
    return tuple(value for value in dict.fromkeys(forms) if len(value) >= 2)
