"""The objects between the steps: what they refuse and what they derive."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from echoray import types
from echoray.types import ArtifactRef, Ledger, Report


def test_a_ledger_that_loses_or_invents_records_cannot_be_made() -> None:
    assert Ledger("split", 5, 3, {"no_report": 1, "corrupt": 1}).records_out == 3
    with pytest.raises(ValueError, match="1 records unaccounted for"):
        Ledger("split", 5, 3, {"no_report": 1})
    with pytest.raises(ValueError, match="-1 records unaccounted for"):
        Ledger("split", 2, 3)


def test_a_reports_text_has_the_findings_before_the_impression() -> None:
    assert Report("Findings.", "Impression.").text == "Findings.\nImpression."
    assert Report("Findings.", "").text == "Findings."


def test_an_artifacts_path_holds_kind_name_and_the_start_of_its_digest() -> None:
    assert ArtifactRef("shards", "tiny", "0123456789abcdef").path == "shards/tiny-01234567"


def test_every_type_is_frozen() -> None:
    classes = [one for one in vars(types).values() if isinstance(one, type) and dataclasses.is_dataclass(one)]
    assert len(classes) >= 9
    assert all(one.__dataclass_params__.frozen for one in classes)  # type: ignore[attr-defined]


def test_types_errors_config_and_storage_import_no_framework() -> None:
    code = (
        "import sys, echoray.types, echoray.errors, echoray.config, echoray.storage, echoray.artifacts;"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'mlflow', 'numpy', 'pyarrow', 'fsspec'};"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
