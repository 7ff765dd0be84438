"""The leak audit finds every near-identical pair across splits, settles it, and vouches for what is left."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest

from echoray import artifacts
from echoray.data.fingerprint import NEAR, NUM_BITS, differing_bits, frame_fingerprint, near_any
from echoray.data.leaks import (
    AUDIT_FILE,
    REASON,
    audit_record,
    audit_studies,
    check_audit,
    crossing,
    read_audit,
)
from echoray.data.phantom import synthesize_study
from echoray.data.sources.dicom import evenly, to_rgb
from echoray.data.sources.samples import package_samples
from echoray.errors import ArtifactError
from echoray.storage import open_store
from echoray.types import ArtifactRef

NAMES = ("train", "validation", "test")


def drawn(count: int, *, dull: bool, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Hashes with planted pairs on both sides of the limit; dull ones have most bits nearly constant."""
    rng = np.random.default_rng(seed)
    share = np.where(np.arange(NUM_BITS) % 6 == 0, 0.5, 0.005) if dull else np.full(NUM_BITS, 0.5)
    bits = rng.random((count, NUM_BITS)) < share
    for distance in (*range(NEAR - 3, NEAR + 4), 0, 1) * 12:
        one, other = rng.choice(count, 2, replace=False)
        bits[other] = bits[one]
        bits[other, rng.choice(NUM_BITS, distance, replace=False)] ^= True
    splits = rng.choice(NAMES, count, p=(0.75, 0.05, 0.2)).tolist()
    return np.packbits(bits, axis=1), splits


def by_brute_force(hashes_NB: np.ndarray, splits: list[str]) -> dict[tuple[int, int], int]:
    words, names, found = hashes_NB.view(np.uint64), np.array(splits), {}
    for row in range(len(words)):
        bits = np.bitwise_count(words[row + 1 :] ^ words[row]).sum(1)
        for place in np.flatnonzero((bits <= NEAR) & (names[row + 1 :] != names[row])):
            found[row, row + 1 + int(place)] = int(bits[place])
    return found


@pytest.mark.parametrize("dull", [False, True])
def test_the_search_equals_brute_force(dull: bool) -> None:
    hashes, splits = drawn(8_000 if dull else 3_000, dull=dull)
    found = {(one.first, one.second): one.distance_bits for one in crossing(hashes, splits)}
    expected = by_brute_force(hashes, splits)
    assert found == expected
    assert {NEAR, 0} <= set(found.values())
    assert not crossing(hashes, ["train"] * len(hashes))


def row(study: str, split: str, *hashes: np.ndarray, patient: str = "") -> dict[str, Any]:
    prints = [one.tobytes() for one in hashes]
    return {
        "study_hash": study,
        "patient_key": patient or study,
        "split": split,
        "fingerprints": prints,
    }


def test_test_stays_before_validation_and_validation_before_train() -> None:
    base = np.random.default_rng(1).integers(0, 256, (4, NUM_BITS // 8), dtype=np.uint8)
    a, b, c, lone = base
    near_a = a.copy()
    near_a[0] ^= 0b111
    rows = [
        row("t1", "test", a),
        row("v1", "validation", lone, near_a),  # goes, because of t1
        row("r1", "train", near_a),  # goes, because of t1
        row("r2", "train", lone),  # stays: the validation study that shows it goes
        row("v2", "validation", b),
        row("r3", "train", b),  # goes, because of v2
        row("r4", "train", c),
        row("r5", "train", c),  # the same split: no leak
    ]
    audit = audit_studies(rows)
    assert audit == audit_studies(rows[::-1])
    assert audit.dropped == {"v1", "r1", "r3"}
    assert {(one.step, one.reason) for one in audit.rejections} == {("audit", REASON)}
    assert audit.counts["studies"] == 5 and audit.counts["studies_dropped"] == 3
    assert audit.counts["frames_crossing"] == audit.counts["patients_crossing"] == 0
    shared = audit_studies([row("x", "test", a, patient="p"), row("y", "train", b, patient="p")])
    assert shared.counts["patients_crossing"] == 1


def altered(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The same picture as another export of it would look."""
    noise = np.random.default_rng(5).normal(0, 8, pixels.shape)
    coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    text = cv2.putText(pixels.copy(), "12.3 mm", (300, 260), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255))
    return {
        "jpeg": cv2.imdecode(coded, cv2.IMREAD_COLOR),
        "noise": np.clip(pixels + noise, 0, 255).astype(np.uint8),
        "gain": np.clip(pixels * 1.15, 0, 255).astype(np.uint8),
        "larger": cv2.resize(pixels, None, fx=1.25, fy=1.25),
        "text": text,
    }


def test_fingerprints_tell_patients_apart_and_know_an_altered_copy() -> None:
    frames = [
        synthesize_study(index, seed=0, language="en", width=640, height=480).frames[0].pixels
        for index in range(56)
    ]
    for frame in frames:
        frame[:48] = 0  # the banner, which de-identification clears
    prints = [frame_fingerprint(frame) for frame in frames]
    apart = [differing_bits(one, other) for at, one in enumerate(prints) for other in prints[:at]]
    copies = [
        differing_bits(mark, frame_fingerprint(copy))
        for mark, frame in zip(prints[::6], frames[::6], strict=True)
        for copy in altered(frame).values()
    ]
    print(f"apart: at least {min(apart)} of {len(apart)} pairs; copies: at most {max(copies)}")
    assert min(apart) > NEAR
    assert np.mean([bits <= NEAR for bits in copies]) >= 0.95


def test_a_moving_cine_keeps_its_key_frames_and_a_frozen_one_keeps_one() -> None:
    still = synthesize_study(5, seed=11, language="en", width=640, height=480).frames[0].pixels
    rng = np.random.default_rng(2)
    frozen = [np.clip(still + rng.normal(0, 6, still.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    assert kept(frozen) == 1
    cines = real_cines()
    assert kept(cines["ultrasound-multiframe.dcm"]) == 24  # a beating heart
    assert kept(cines["RGB_CINE.dcm"]) == 1  # a probe in air


def real_cines() -> dict[str, list[np.ndarray]]:
    found = {}
    for sample in package_samples():
        if sample.name in ("ultrasound-multiframe.dcm", "RGB_CINE.dcm"):
            header = pydicom.dcmread(io.BytesIO(sample.read_bytes()))
            found[sample.name] = list(to_rgb(header, evenly(int(header.NumberOfFrames), 24)))
    return found


def kept(frames: list[np.ndarray]) -> int:
    seen: list[bytes] = []
    for frame in frames:
        mark = frame_fingerprint(frame)
        if not near_any(mark, seen):
            seen.append(mark)
    return len(seen)


def sealed(folder: Path, change: Mapping[str, Any] | None) -> tuple[Any, ArtifactRef]:
    """A studies artifact with a part and an audit, changed as told, or without one."""
    store, ref = open_store(str(folder)), artifacts.plan("studies", "s", config={})
    files = {"part-00000.parquet": artifacts.write_file(store, ref.path, "part-00000.parquet", b"rows")}
    if change is not None:
        record = audit_record(audit_studies([]), files) | change
        files[AUDIT_FILE] = artifacts.write_file(store, ref.path, AUDIT_FILE, json.dumps(record).encode())
    artifacts.seal(store, ref, config={}, digests=files)
    return store, ref


def test_a_good_audit_is_read_and_a_missing_failed_or_foreign_one_is_refused(tmp_path: Path) -> None:
    assert read_audit(*sealed(tmp_path / "good", {}))["counts"]["frames_crossing"] == 0
    for number, (change, told) in enumerate(
        [
            (None, "audit.json is missing"),
            ({"counts": {"patients_crossing": 0, "frames_crossing": 3}}, "frames_crossing is 3, expected 0"),
            (
                {"counts": {"patients_crossing": 2, "frames_crossing": 0}},
                "patients_crossing is 2, expected 0",
            ),
            ({"counts": {}}, "is None, expected 0"),
            ({"inputs": "0" * 64}, "inputs is '000"),
            ({"schema_version": 9}, "schema_version is 9, expected 1"),
            ({"max_distance_bits": 0}, "max_distance_bits is 0, expected 16"),
        ]
    ):
        with pytest.raises(ArtifactError, match=told) as caught:
            read_audit(*sealed(tmp_path / str(number), change))
        assert "echoray data prepare" in caught.value.hint
    with pytest.raises(ArtifactError, match="schema_version is None"):
        check_audit(["not", "an", "audit"], {}, where="here")
