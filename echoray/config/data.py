"""Where studies come from and how they become training shards."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from echoray.config.base import Section
from echoray.config.dedup import DedupConfig
from echoray.types import ImageLayout, Language

SYNTHETIC_KEY = "synthetic"
REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$"
# Accession number, names, numbers and birth dates of the patient, study, series and instance UIDs.
_PERSONAL = {0x00080050, 0x00100010, 0x00100020, 0x00100030, 0x00101000, 0x00101001, 0x0020000D, 0x0020000E}
_PERSONAL |= {0x00080018, 0x00100032, 0x00101040, 0x00102154}


class PhantomConfig(Section):
    """The synthetic corpus; rates are shares of ``num_studies``."""

    num_studies: int = Field(280, ge=0, description="synthetic studies, spread evenly over seven systems")
    width: int = Field(640, ge=320, le=2048, description="frame width in pixels")
    height: int = Field(480, ge=240, le=2048, description="frame height in pixels")
    multi_region_rate: float = Field(0.02, ge=0, le=0.5)
    no_report_rate: float = Field(0.02, ge=0, le=0.5)
    corrupt_rate: float = Field(0.02, ge=0, le=0.5)
    patients_with_two_studies_rate: float = Field(0.1, ge=0, le=1)


class DicomwebConfig(Section):
    """One DICOMweb archive: what is asked for with QIDO-RS, and how the service is reached."""

    url: str = Field(pattern=r"^https?://[^/?#]+[^?#]*$", description="base of the service: URL/studies")
    filters: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(
        {}, description="QIDO matches of studies by keyword or tag, e.g. StudyDate: 20240101-20241231"
    )
    auth_ref: str | None = Field(
        None,
        pattern=REFERENCE,
        description="env:NAME or file:PATH of 'Bearer TOKEN', 'Basic BASE64' or user:password",
    )
    verify: bool = Field(True, description="check the server's certificate")
    ca_bundle: str | None = Field(None, description="PEM file of the authorities to trust; else the system's")
    client_cert: str | None = Field(None, description="PEM file of the client's certificate")
    client_key: str | None = Field(None, description="PEM file of its key, unless client_cert holds it")
    timeout_s: float = Field(60, gt=0, description="longest wait for the server's next bytes")
    retries: int = Field(5, ge=0, le=20, description="of a request that met 429, 5xx or a lost connection")
    page_size: int = Field(1000, ge=1, description="results asked for at once; a server may give fewer")

    @field_validator("url")
    @classmethod
    def _without_credentials(cls, url: str) -> str:
        if "@" in url:
            raise ValueError("the URL holds a user or a password; expected auth_ref: env:NAME or file:PATH")
        return url.rstrip("/")

    @field_validator("filters")
    @classmethod
    def _known_and_impersonal(cls, filters: dict[str, str]) -> dict[str, str]:
        for name in filters:
            tag = _tag(name)
            if tag is None:
                raise ValueError(f"filter {name!r} is no DICOM keyword or tag; a server would ignore it")
            if tag in _PERSONAL:
                raise ValueError(
                    f"filter {name!r} would put what identifies a patient into configurations; "
                    "expected dates, modality, station, description or the like"
                )
        return filters


class SourceConfig(Section):
    """The raw studies: folders or prefixes by kind, DICOMweb archives, and the embedded samples."""

    dicom_uris: tuple[str, ...] = Field((), description="file:// or s3:// prefixes that hold DICOM studies")
    dicomweb: tuple[DicomwebConfig, ...] = Field((), description="archives read through QIDO-RS and WADO-RS")
    image_report_uris: tuple[str, ...] = Field(
        (),
        description="file:// or s3:// prefixes with a folder of images and report per study, or studies.csv",
    )
    conversation_uris: tuple[str, ...] = Field(
        (),
        description="prefixes or files of LLaVA, swift or OpenAI conversations, images beside them",
    )
    phantom: PhantomConfig | None = Field(None, description="write and read a synthetic corpus")
    package_samples: bool = Field(False, description="also read the real DICOM files of installed packages")

    @property
    def real_key(self) -> str:
        """The first key that names studies of people, or an empty string."""
        keys = ("dicom_uris", "dicomweb", "image_report_uris", "conversation_uris")
        return next((f"source.{key}" for key in keys if getattr(self, key)), "")


def _tag(name: str) -> int | None:
    """The tag of a DICOM keyword, or of eight hexadecimal digits."""
    from pydicom.datadict import tag_for_keyword

    return int(name, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else tag_for_keyword(name)


class DeidentifyConfig(Section):
    """De-identification; the hash key is a secret and is named by reference only."""

    key_ref: str = Field(
        "env:ECHORAY_DEID_KEY",
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|synthetic)$",
        description="env:NAME or file:PATH of the HMAC key; 'synthetic': a public key for synthetic data",
    )
    pixels: bool = Field(True, description="find, read and remove burned-in patient text")
    pixels_cleaned_elsewhere: bool = Field(
        False, description="you vouch that no real source shows burned-in patient text"
    )


class SplitConfig(Section):
    """Patient-keyed split; a patient is in one split only."""

    train: float = Field(0.75, gt=0, lt=1)
    validation: float = Field(0.05, ge=0, lt=1)
    test: float = Field(0.20, ge=0, lt=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitConfig:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test is {total:g}, expected 1")
        return self


class DataConfig(Section):
    """From raw studies to tokenized Parquet shards."""

    source: SourceConfig = SourceConfig()
    language: Language = "en"
    deidentify: DeidentifyConfig = DeidentifyConfig()
    split: SplitConfig = SplitConfig()
    image_size_px: int = Field(
        392, multiple_of=28, ge=56, description="pixel budget of a picture is its square; Table 9: 392"
    )
    image_layout: ImageLayout = Field(
        "dynamic",
        description="dynamic: sides follow the content's aspect; square: image_size_px on both sides",
    )
    max_frames: int = Field(8, ge=1, description="key frames kept per study")
    max_length_tokens: int = Field(
        32768, ge=64, description="longer answers lose their tail; Table 9: 32,768"
    )
    vqa_per_study: int = Field(2, ge=0, description="rule-based question and answer pairs per study")
    dedup: DedupConfig = DedupConfig()
    part_studies: int = Field(16, ge=1, description="studies per Parquet part, at most, on average")
    shard_mb: float = Field(64, gt=0, description="size of the studies behind one shard of each split, in MB")
    num_workers: int = Field(2, ge=1, description="Ray Data workers for the CPU-heavy steps")

    @model_validator(mode="after")
    def _public_key_only_for_public_data(self) -> DataConfig:
        real = self.source.real_key
        if self.deidentify.key_ref == SYNTHETIC_KEY and real:
            raise ValueError(
                f"deidentify.key_ref is 'synthetic' (a public key) but {real} names real studies; "
                "expected env:NAME or file:PATH"
            )
        return self

    @model_validator(mode="after")
    def _burned_in_text_is_removed_by_someone(self) -> DataConfig:
        rules, real = self.deidentify, self.source.real_key
        if real and not rules.pixels and not rules.pixels_cleaned_elsewhere:
            raise ValueError(
                f"deidentify.pixels is false but {real} names real studies, whose burned-in names "
                "and numbers would be trained on; expected deidentify.pixels: true, or, where another tool "
                "removed them, deidentify.pixels_cleaned_elsewhere: true"
            )
        return self
