"""Where studies come from and how they become training shards."""

from __future__ import annotations

from pydantic import Field, model_validator

from echoray.config.base import Section
from echoray.types import Language

SYNTHETIC_KEY = "synthetic"


class PhantomConfig(Section):
    """The synthetic corpus; rates are shares of ``num_studies``."""

    num_studies: int = Field(280, ge=0, description="synthetic studies, spread evenly over seven systems")
    width: int = Field(640, ge=320, le=2048, description="frame width in pixels")
    height: int = Field(480, ge=240, le=2048, description="frame height in pixels")
    multi_region_rate: float = Field(0.02, ge=0, le=0.5)
    no_report_rate: float = Field(0.02, ge=0, le=0.5)
    corrupt_rate: float = Field(0.02, ge=0, le=0.5)
    patients_with_two_studies_rate: float = Field(0.1, ge=0, le=1)


class SourceConfig(Section):
    """The raw studies: folders or object-store prefixes by kind, and the embedded samples."""

    dicom_uris: tuple[str, ...] = Field((), description="file:// or s3:// prefixes that hold DICOM studies")
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
        keys = ("dicom_uris", "image_report_uris", "conversation_uris")
        return next((f"source.{key}" for key in keys if getattr(self, key)), "")


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
    image_size_px: int = Field(392, multiple_of=28, ge=56, description="square target size; Table 9: 392")
    max_frames: int = Field(8, ge=1, description="key frames kept per study")
    max_length_tokens: int = Field(
        32768, ge=64, description="longer examples go to quarantine; Table 9: 32,768"
    )
    vqa_per_study: int = Field(2, ge=0, description="rule-based question and answer pairs per study")
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
