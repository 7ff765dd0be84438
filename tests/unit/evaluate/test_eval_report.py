"""Figures from predictions: means, averages, intervals, system naming; and what is drawn from them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from echoray.config import load_run
from echoray.errors import EvaluationError
from echoray.evaluate.examples import Case, Entry, pick_entries
from echoray.evaluate.intervals import percentile_interval, resampled_means
from echoray.evaluate.pages import draw_case, render_html, render_table
from echoray.evaluate.report import EvalReport, summarise, system_accuracy
from echoray.types import SYSTEMS


def entry(index: int, system: str, answer: str, task: str = "report", study: str = "") -> Entry:
    return Entry(f"e{index}", study or f"s{index}", system, task, "en", "Report?", answer, 9, "p", index)  # type: ignore[arg-type]


def report_of(
    entries: list[Entry], predictions: dict[str, dict[str, str]], num_samples: int = 100
) -> EvalReport:
    models = {label: label * 8 for label in predictions}
    return summarise(
        entries, predictions, test_digest="d" * 64, models=models, num_samples=num_samples, seed=1
    )


@pytest.fixture
def report() -> EvalReport:
    entries = [
        entry(0, "liver", "liver a b c"),
        entry(1, "liver", "liver a b c"),
        entry(2, "liver", "liver a b c"),
        entry(3, "heart", "heart a b c"),
        entry(4, "heart", "the heart", task="vqa"),
    ]
    good = {one.example_id: one.answer for one in entries}
    poor = good | {"e0": "kidney x y z", "e1": "liver x y z", "e3": "heart heart liver liver", "e4": ""}
    return report_of(entries, {"good": good, "poor": poor})


def test_the_average_is_the_unweighted_mean_over_systems(report: EvalReport) -> None:
    assert report.mean("good", "report", "rouge_1") == 100
    assert report.mean("poor", "report", "rouge_1", "liver") == pytest.approx((0 + 25 + 100) / 3)
    assert report.mean("poor", "report", "rouge_1", "heart") == pytest.approx(25)
    assert report.mean("poor", "report", "rouge_1") == pytest.approx(((0 + 25 + 100) / 3 + 25) / 2)
    assert report.row("poor", "report", "bleu_1").num_examples == 4


def test_a_report_names_the_right_system_only_where_no_other_is_named_as_often(report: EvalReport) -> None:
    assert report.system_accuracy == {"good": 1.0, "poor": pytest.approx(2 / 4)}


def test_reports_written_for_the_synthetic_studies_name_their_system() -> None:
    from echoray.data.phantom.study import synthesize_study

    for language in ("en", "zh"):
        for index in range(len(SYSTEMS)):
            truth = synthesize_study(index, seed=4, language=language, width=320, height=240).truth
            own = entry(index, truth.system, "")
            assert system_accuracy([own], {own.example_id: truth.clean_report.text}) == 1


def test_tasks_are_kept_apart(report: EvalReport) -> None:
    assert report.counts == {"report": 4, "vqa": 1}
    assert report.systems("vqa") == ["heart"]
    assert report.mean("poor", "vqa", "rouge_l") == 0
    with pytest.raises(EvaluationError, match="no figure for"):
        report.mean("poor", "diagnosis", "rouge_l")


def test_report_json_gives_the_same_report_back(report: EvalReport) -> None:
    assert EvalReport.from_json(report.to_json()) == report
    with pytest.raises(EvaluationError, match="schema v2"):
        EvalReport.from_json(report.to_json().replace('"schema_version": 1', '"schema_version": 2'))


def test_intervals_depend_on_the_seed_alone_and_not_on_the_other_models() -> None:
    entries = [entry(index, "liver", "a b c d") for index in range(12)]
    texts = {one.example_id: "a b c d"[: 1 + 2 * (one.row % 4)] for one in entries}
    both = report_of(entries, {"x": {one.example_id: "a" for one in entries}, "y": texts})
    alone = report_of(entries, {"y": texts})
    assert both.row("y", "report", "rouge_l") == alone.row("y", "report", "rouge_l")
    interval = alone.row("y", "report", "rouge_l").interval
    assert interval is not None
    assert interval[0] < alone.mean("y", "report", "rouge_l") < interval[1]
    assert both.row("x", "report", "rouge_l").interval == pytest.approx((40.0, 40.0))


def test_without_resamples_there_is_no_interval() -> None:
    report = report_of([entry(0, "liver", "a")], {"x": {"e0": "a"}}, num_samples=0)
    assert report.row("x", "report", "bleu_1").interval is None
    assert "100.00" in render_table(report)


def test_the_bootstrap_covers_the_true_mean_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        scores_NM = rng.normal(50, 10, (40, 1))
        means_SM = resampled_means(scores_NM, [str(one) for one in range(40)], 400, rng)
        ((low, high),) = percentile_interval(means_SM)  # type: ignore[misc]
        covered += low <= 50 <= high
    assert 0.89 <= covered / 200 <= 0.985


def test_examples_of_one_study_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    scores_NM = np.repeat(rng.normal(50, 10, (20, 1)), 5, axis=0)
    studies = [str(index // 5) for index in range(100)]
    together = resampled_means(scores_NM, studies, 2000, np.random.default_rng(1)).std()
    apart = resampled_means(scores_NM, [str(one) for one in range(100)], 2000, np.random.default_rng(1)).std()
    assert together == pytest.approx(apart * 5**0.5, rel=0.1)


def test_the_table_has_a_row_per_system_and_metric_and_a_column_per_model(report: EvalReport) -> None:
    text = render_table(report)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    assert lines[0] == ["Anatomical", "Metric", "good", "poor"]
    assert [line[:2] for line in lines[2:11:3]] == [
        ["Liver", "BLEU-1"],
        ["Heart", "BLEU-1"],
        ["Average", "BLEU-1"],
    ]
    assert lines[3] == ["Liver", "ROUGE-1", "100.00", "41.67"]
    assert "not a medical device" in text


def test_the_page_escapes_names_and_refers_to_nothing_outside() -> None:
    report = report_of([entry(0, "liver", "a")], {"<script>x": {"e0": "a"}})
    page = render_html(load_run("tiny"), report, [b"png"])
    assert "<script" not in page and "&lt;script&gt;x" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "not a medical device" in page


def test_cases_are_taken_from_each_system_in_turn() -> None:
    entries = [entry(0, "liver", ""), entry(1, "liver", ""), entry(2, "heart", ""), entry(3, "breast", "")]
    assert [one.row for one in pick_entries(entries, 3)] == [0, 2, 3]
    assert [one.row for one in pick_entries(entries, 9)] == [0, 2, 3, 1]


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_a_case_picture_shows_every_frame_and_writes_chinese_as_glyphs(num_images: int) -> None:
    colours = [(200, 10 * number, 20) for number in range(num_images)]
    frames = []
    for colour in colours:
        target = io.BytesIO()
        Image.new("RGB", (168, 168), colour).save(target, "PNG")
        frames.append(target.getvalue())

    def picture(text: str) -> np.ndarray:
        case = Case("e0", "liver", "zh", "请写报告。", text, tuple(frames))
        return np.asarray(Image.open(io.BytesIO(draw_case(case, {"base": "", "stage 2": text * 30}))))

    drawn = picture("肝囊肿")
    for colour in colours:
        assert (drawn == colour).all(axis=-1).sum() > 100 * 100
    # A font without the characters draws the same box for each.
    assert (drawn != picture("肾结石")).any()
