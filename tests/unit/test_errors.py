"""Every error keeps its message, hint and exit code on its way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from echoray import errors
from echoray.errors import EchoRayError, UsageError


def all_errors() -> list[type[EchoRayError]]:
    found = [EchoRayError]
    for one in found:
        found += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", all_errors())
def test_an_error_survives_pickling_with_its_hint(kind: type[EchoRayError]) -> None:
    error = kind("3 workers, expected 2", hint="set train.num_workers=2")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (again.message, again.hint) == (error.message, error.hint)
        assert str(again) == "3 workers, expected 2\n  hint: set train.num_workers=2"


@pytest.mark.parametrize("kind", all_errors())
def test_what_the_user_can_correct_exits_with_2_and_the_rest_with_1(kind: type[EchoRayError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


def test_an_error_without_a_hint_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="hint"):
        EchoRayError("no hint")  # type: ignore[call-arg]


def test_there_are_errors_of_both_kinds() -> None:
    assert {kind.exit_code for kind in all_errors()} == {1, 2}
    assert len(all_errors()) > 10
