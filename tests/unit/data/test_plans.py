"""What names an artifact: whatever decides its content, and nothing that does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from echoray import artifacts
from echoray.config import DataConfig, load_run
from echoray.data import corpus, studies
from echoray.data.corpus import make_corpus
from echoray.data.deidentify import rules
from echoray.data.studies import prepare_studies
from echoray.model.base import WEIGHTS, base_digest
from echoray.types import ArtifactRef


class Planned(Exception):  # noqa: N818 - it carries a result
    """Ends a step as soon as it has named its artifact."""


def planned(monkeypatch: pytest.MonkeyPatch, kind: str, **data: Any) -> ArtifactRef:
    """The artifact that the step would make, without making it."""
    run = load_run("tiny").merged({"workspace": "memory://plans", "data": data})

    def stop(store: object, ref: ArtifactRef) -> None:
        raise Planned(ref)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "find", stop)
        with pytest.raises(Planned) as raised:
            if kind == "corpus":
                make_corpus(run, lambda *_: None)
            else:
                prepare_studies(run, None, lambda *_: None)
    ref: ArtifactRef = raised.value.args[0]
    assert ref.kind == kind
    return ref


def archive(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "source": {"dicom_uris": [str(folder)], "phantom": None, "package_samples": False},
        "deidentify": {"key_ref": "env:ECHORAY_TEST_KEY"},
        **changes,
    }


def test_studies_are_named_by_listing_rules_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHORAY_TEST_KEY", "key")
    (tmp_path / "0.dcm").write_bytes(b"x")
    first = planned(monkeypatch, "studies", **archive(tmp_path))
    assert planned(monkeypatch, "studies", **archive(tmp_path, num_workers=7, vqa_per_study=0)) == first
    names = {first}
    (tmp_path / "1.dcm").write_bytes(b"x")
    names.add(planned(monkeypatch, "studies", **archive(tmp_path)))
    (tmp_path / "1.dcm").write_bytes(b"xy")
    names.add(planned(monkeypatch, "studies", **archive(tmp_path)))
    monkeypatch.setattr(studies, "REVISION", 1000)
    names.add(planned(monkeypatch, "studies", **archive(tmp_path)))
    monkeypatch.setattr(studies, "rules_digest", lambda: "of other rules")
    names.add(planned(monkeypatch, "studies", **archive(tmp_path)))
    monkeypatch.setenv("ECHORAY_TEST_KEY", "another")
    names.add(planned(monkeypatch, "studies", **archive(tmp_path)))
    assert len(names) == 6


def test_the_rules_digest_is_that_of_every_rule_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Path(str(rules.__file__)).parent
    names = ("en.yaml", "zh.yaml", "text_en.yaml", "text_zh.yaml")
    for name in names:
        shutil.copy(source / name, tmp_path)
    shipped = rules.rules_digest()
    monkeypatch.setattr(rules, "files", lambda package: tmp_path)
    seen = {shipped}
    assert rules.rules_digest() == shipped
    for name in names:
        with (tmp_path / name).open("a") as handle:
            handle.write("# another rule")
        seen.add(rules.rules_digest())
    assert len(seen) == 5


def test_the_corpus_is_named_by_the_samples_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = planned(monkeypatch, "corpus")
    found = corpus.package_samples()
    monkeypatch.setattr(corpus, "package_samples", lambda: found[1:])
    second = planned(monkeypatch, "corpus")
    monkeypatch.setattr(corpus, "REVISION", 1000)
    assert len({first, second, planned(monkeypatch, "corpus")}) == 3


def test_a_base_is_named_by_the_content_of_its_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "base"))
    first = base_digest(str(folder))
    assert first == base_digest("embedded")  # content, not place
    weights = folder / "model.safetensors"
    content, state = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    changed = base_digest(str(folder))
    (folder / "README.md").write_text("notes")
    assert base_digest(str(folder)) == changed
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert len({first, changed, base_digest(str(folder))}) == 3


def test_real_studies_with_their_burned_in_text_need_an_explicit_word(tmp_path: Path) -> None:
    source = {"dicom_uris": [str(tmp_path)]}
    with pytest.raises(ValidationError, match="pixels_cleaned_elsewhere: true"):
        DataConfig.model_validate({"source": source, "deidentify": {"pixels": False}})
    with pytest.raises(ValidationError, match="burned-in names"):
        load_run("tiny").merged({"data": archive(tmp_path, deidentify={"key_ref": "env:K", "pixels": False})})
    vouched = {"pixels": False, "pixels_cleaned_elsewhere": True}
    assert not DataConfig.model_validate({"source": source, "deidentify": vouched}).deidentify.pixels
    assert not DataConfig.model_validate({"deidentify": {"pixels": False}}).deidentify.pixels
