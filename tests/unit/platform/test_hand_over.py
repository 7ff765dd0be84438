"""What is handed on is the whole model or nothing, and its card gives the figures that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoray import artifacts
from echoray.errors import InputDataError
from echoray.evaluate.report import AVERAGE, EvalReport, Row
from echoray.platform.hand_over import hand_over
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "workspace"))


def model(store: Store, name: str) -> ArtifactRef:
    ref = artifacts.plan("model", name, config={})
    artifacts.write_file(store, ref.path, "README.md", b"# A model\n")
    artifacts.write_file(store, ref.path, "model.safetensors", b"weights")
    artifacts.seal(store, ref, config={})
    return ref


def evaluated(store: Store, *models: ArtifactRef) -> None:
    rows = [
        Row(one.name, "report", system, "rouge_l", mean, (mean - 1, mean + 1), 44)
        for one in models
        for system, mean in (("liver", 11.0), (AVERAGE, 40.0 + len(one.name)))
    ]
    digests = {one.name: one.digest for one in models}
    report = EvalReport("digest", digests, tuple(rows), {models[0].name: 0.977}, {"report": 44})
    ref = artifacts.plan("evaluation", "run", config={}, parents=models)
    artifacts.write_file(store, ref.path, "report.json", report.to_json().encode())
    artifacts.seal(store, ref, config={}, parents=models)


def test_the_card_gives_this_model_s_figures_and_no_other_s(store: Store, tmp_path: Path) -> None:
    ours, other = model(store, "ours"), model(store, "another")
    evaluated(store, ours, other)
    assert hand_over(store, ours, tmp_path / "a" / "out")
    card = (tmp_path / "a" / "out" / "README.md").read_text()
    assert card.startswith("# A model\n")
    assert "| report | 44 | rouge_l | 44.0 | 43.0 to 45.0 |" in card and "97.7%" in card
    assert "47.0" not in card and "11.0" not in card
    assert sorted(one.name for one in (tmp_path / "a" / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
    ]
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["out"]


def test_without_an_evaluation_the_copy_is_the_model(store: Store, tmp_path: Path) -> None:
    ours, other = model(store, "ours"), model(store, "another")
    evaluated(store, other)
    (tmp_path / "out").mkdir()
    assert not hand_over(store, ours, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_bytes() == b"# A model\n"
    with pytest.raises(InputDataError, match="new or an empty folder"):
        hand_over(store, ours, tmp_path / "out")
