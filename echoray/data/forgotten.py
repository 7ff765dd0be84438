"""Patients whose data must be in no version from now on, by keyed hash; each is an object of its own."""

from __future__ import annotations

from echoray.storage import Store

_FOLDER = "forgotten"


def forgotten_patients(store: Store) -> frozenset[str]:
    """The keyed hashes of every patient that was forgotten in this workspace."""
    return frozenset(path.rpartition("/")[2] for path in store.list(_FOLDER))


def remember_to_forget(store: Store, patient_key: str) -> bool:
    """Note that a patient is forgotten; whether that is new."""
    return store.write_bytes(f"{_FOLDER}/{patient_key}", b"", if_absent=True)
