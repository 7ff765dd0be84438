"""The configuration: presets, files, overrides, refusals, digests, secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from echoray.config import RunConfig, canonical_json, digest, load_run, run_digest, secret
from echoray.config.load import keys
from echoray.config.presets import PRESETS
from echoray.errors import ConfigError


def value_of(run: RunConfig, key: str) -> Any:
    found: Any = run
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_written_out_gives_itself_back(preset: str, tmp_path: Path) -> None:
    run = load_run(preset)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert load_run(str(path)) == run
    assert run_digest(load_run(str(path))) == run_digest(run)


@pytest.mark.parametrize(
    ("preset", "shared", "routed", "base"),
    [("echovlm_3b", 1536, 768, "2B"), ("echovlm_11b", 5632, 1408, "7B")],
)
def test_the_large_presets_are_the_rows_of_the_papers_table_9(
    preset: str, shared: int, routed: int, base: str
) -> None:
    run = load_run(preset)
    assert run.model.shared_expert_intermediate_size == shared
    assert run.model.moe_intermediate_size == routed
    assert base in run.model.base
    assert (run.model.num_experts, run.model.num_experts_per_tok) == (4, 2)
    assert (run.data.image_size_px, run.data.max_length_tokens) == (392, 32768)
    lora = run.train.finetune.lora
    assert lora is not None and (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.05)
    assert run.train.align.lora is None
    assert (run.train.align.learning_rate, run.train.finetune.learning_rate) == (1e-3, 2e-5)
    stages = (run.train.align, run.train.finetune)
    assert [(stage.epochs, stage.warmup_ratio, stage.global_batch_size) for stage in stages] == [
        (1, 0.03, 8)
    ] * 2
    assert (run.train.num_workers, run.train.weight_decay, run.train.precision) == (8, 0.0, "bf16")
    assert run.train.gradient_checkpointing and run.train.balance_weight == 0.001


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.num_workers=3", "train.num_workers", 3),
        ("train.align.learning_rate=3e-3", "train.align.learning_rate", 0.003),
        ("train.align.learning_rate=1.5E-4", "train.align.learning_rate", 0.00015),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
        ("train.align.max_steps=null", "train.align.max_steps", None),
        ("evaluate.tasks=[report, vqa]", "evaluate.tasks", ("report", "vqa")),
        ("data.split={train: 0.5, validation: 0.2, test: 0.3}", "data.split.test", 0.3),
        ("registry.tracking_uri=http://m:5000/?a=b", "registry.tracking_uri", "http://m:5000/?a=b"),
        ("registry.model_name=nan", "registry.model_name", "nan"),
        ("registry.model_name=infinity", "registry.model_name", "infinity"),
        ("serve.host='0.0.0.0'", "serve.host", "0.0.0.0"),
    ],
)
def test_an_override_is_read_as_a_yaml_value(override: str, key: str, expected: object) -> None:
    assert value_of(load_run("tiny", [override]), key) == expected


def test_overrides_win_over_the_file_and_the_file_over_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: tiny\nseed: 5\ntrain: {num_workers: 3}\n")
    run = load_run(str(path), ["seed=6", "seed=7"])
    assert (run.seed, run.train.num_workers) == (7, 3)
    assert run.train.align.epochs == load_run("tiny").train.align.epochs


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("train.num_worker", "train.num_workers"),
        ("train.algin.epochs", "train.align.epochs"),
        ("sed", "seed"),
        ("data.source.phantom.num_study", "data.source.phantom.num_studies"),
        ("train.finetune.lora.rnak", "train.finetune.lora.rank"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    key: str, suggestion: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"unknown configuration key {key!r}") as error:
        load_run("tiny", [f"{key}=1"])
    assert error.value.hint == f"did you mean {suggestion!r}?"
    nested: Any = 1
    for part in reversed(key.split(".")):
        nested = {part: nested}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(ConfigError, match="unknown configuration key"):
        load_run(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_workers=0", r"train\.num_workers: .*greater than or equal to 1 \(given: 0\)"),
        ("train.precision=fp8", r"train\.precision: .*'bf16' or 'fp32'"),
        ("data.image_size_px=100", r"data\.image_size_px: .*multiple of 28"),
        ("data.split.test=0.5", r"data\.split: train \+ validation \+ test is 1\.3, expected 1"),
        ("model.num_experts_per_tok=9", r"num_experts_per_tok is 9, expected at most num_experts \(4\)"),
        ("name=../x", r"name: "),
        ("train=5", r"train: "),
        ("train", r"expected KEY=VALUE"),
        ("=5", r"expected KEY=VALUE"),
        ("train..num_workers=1", r"unknown configuration key"),
        ("train.num_workers.more=1", r"unknown configuration key"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run("tiny", [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n- b", "expected a mapping"),
        (b"preset: tinny", "preset 'tinny' is not known"),
        (b"preset: 5", "preset 5 is not known"),
        (b"preset: [tiny]", r"preset \['tiny'\] is not known"),
        (b"preset: {tiny: 1}", "preset .* is not known"),
        (b"preset: run.yaml", "preset 'run.yaml' is not known"),
        (b"5: 6", "unknown configuration key '5'"),
    ],
)
def test_a_wrong_file_is_refused_and_never_a_traceback(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_run("run.yaml")


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert load_run(str(tmp_path / "run.yaml")) == RunConfig()


def test_the_public_key_is_refused_as_soon_as_a_real_source_is_named() -> None:
    assert load_run("tiny").data.deidentify.key_ref == "synthetic"
    with pytest.raises(ConfigError, match=r"'synthetic' .* names real studies"):
        load_run("tiny", ["data.source.dicom_uris=[/archive]"])
    real = ["data.source.dicom_uris=[/archive]", "data.deidentify.key_ref=env:KEY"]
    assert load_run("tiny", real).data.source.dicom_uris == ("/archive",)


def test_an_archive_is_a_real_source_and_names_no_patient_and_no_password() -> None:
    def load(*overrides: str, key: str = "env:KEY") -> RunConfig:
        return load_run("tiny", [f"data.deidentify.key_ref={key}", *overrides])

    url = "https://pacs.example.org/dicom-web"
    good = f"data.source.dicomweb=[{{url: '{url}/', filters: {{StudyDate: 20240101, '00081010': ROOM*}}}}]"
    (archive,) = load(good).data.source.dicomweb
    assert (archive.url, archive.filters) == (url, {"StudyDate": "20240101", "00081010": "ROOM*"})
    assert archive.verify and archive.auth_ref is None
    with pytest.raises(ConfigError, match=r"source\.dicomweb names real studies"):
        load(good, key="synthetic")
    for value, message in (
        (
            f"[{{url: '{url}', filters: {{PatientName: MySecret}}}}]",
            "'PatientName' would put what identifies",
        ),
        (f"[{{url: '{url}', filters: {{'00100020': MySecret}}}}]", "'00100020' would put what identifies"),
        (f"[{{url: '{url}', filters: {{StudyDat: MySecret}}}}]", "'StudyDat' is no DICOM keyword"),
        (f"[{{url: '{url}', auth_ref: MySecret}}]", r"dicomweb\.0\.auth_ref"),
        ("[{url: 'https://me:MySecret@pacs.example.org'}]", "holds a user or a password"),
        ("[{url: 'ftp://pacs.example.org'}]", r"dicomweb\.0\.url"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            load(f"data.source.dicomweb={value}")
        assert "MySecret" not in str(refused.value)


def test_a_key_can_only_be_named_and_never_written_into_the_configuration() -> None:
    for override in (
        "data.deidentify.key_ref=MySecret",
        "data.deidentify.key_ref=[MySecret]",
        "serve.api_keys_ref=MySecret",
        "data.deidentify.key_ref MySecret",
        "data.deidentify.key_ref:MySecret",
    ):
        with pytest.raises(ConfigError, match=r"deidentify\.key_ref|serve\.api_keys_ref") as refused:
            load_run("tiny", [override])
        assert "MySecret" not in str(refused.value)


def test_a_configuration_cannot_be_changed_and_merging_checks_again() -> None:
    run = load_run("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 1  # type: ignore[misc]
    assert run.merged({"train": {"num_workers": 4}}).train.num_workers == 4
    assert run.train.num_workers == 2
    with pytest.raises(ValidationError):
        run.merged({"train": {"num_workers": 0}})


def test_equal_values_have_equal_digests_in_every_process() -> None:
    assert digest({"b": 1, "a": [1, "肝"]}) == digest({"a": [1, "肝"], "b": 1})
    assert canonical_json({"b": 1, "a": [1, "肝"]}) == '{"a":[1,"肝"],"b":1}'
    code = "from echoray.config import load_run, run_digest; print(run_digest(load_run('tiny')))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.strip() == run_digest(load_run("tiny"))


def test_every_leaf_of_the_configuration_counts_in_the_digest() -> None:
    run = load_run("tiny")
    assert run_digest(run.merged({"seed": 1})) != run_digest(run)
    assert run_digest(run.merged({"data": {"source": {"phantom": {"num_studies": 7}}}})) != run_digest(run)
    assert run_digest(run.merged({"seed": run.seed})) == run_digest(run)


def test_every_key_of_the_tree_can_be_named_in_an_override() -> None:
    run = load_run("tiny", ["train.finetune.lora={}"])
    leaves = [key for key in keys(RunConfig) if not any(one.startswith(f"{key}.") for one in keys(RunConfig))]
    assert len(leaves) > 70
    values = run.model_dump(mode="json")
    for key in leaves:
        value: Any = values
        for part in key.split("."):
            value = value[part] if value is not None else None
        if value is not None:
            assert load_run("tiny", ["train.finetune.lora={}", f"{key}={json.dumps(value)}"]) == run, key


def test_a_secret_comes_from_its_reference_and_is_never_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", " sesame\n")
    assert secret("env:TEST_KEY") == "sesame"
    (tmp_path / "key").write_text("from a file\n")
    assert secret(f"file:{tmp_path / 'key'}") == "from a file"
    monkeypatch.setenv("TEST_KEY", " ")
    for reference in ("env:TEST_KEY", "env:TEST_KEY_THAT_IS_NOT_SET", f"file:{tmp_path / 'none'}"):
        with pytest.raises(ConfigError, match=reference):
            secret(reference)
    (tmp_path / "binary").write_bytes(b"\xffsesame\xfe")
    with pytest.raises(ConfigError, match="not a text file") as refused:
        secret(f"file:{tmp_path / 'binary'}")
    assert "sesame" not in str(refused.value) and refused.value.__cause__ is None
