"""Text metrics against the reference implementations, and on Chinese where those give up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoray.evaluate.text_metrics import bleu_1, lcs_length, rouge_1, rouge_l, score, tokens

# Few words make overlaps and repetitions likely; the punctuation, case and digits exercise the tokenizer.
WORDS = [
    "the",
    "The",
    "liver",
    "LIVER",
    "cyst",
    "12.3",
    "mm,",
    "x",
    "-",
    "hypo-echoic",
    "is",
    "(left)",
    "café",
    "µm",
]
english = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)
chinese = st.text("肝肾囊肿大小约未见1.5mm，。 ", max_size=40)


@settings(max_examples=300, deadline=None)
@given(english, english)
def test_rouge_on_english_equals_rouge_score(reference: str, prediction: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rouge1", "rougeL"]).score(reference, prediction)
    _, one, longest = score(reference, prediction)
    assert one == pytest.approx(100 * expected["rouge1"].fmeasure, abs=1e-6)
    assert longest == pytest.approx(100 * expected["rougeL"].fmeasure, abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.one_of(english, chinese), st.one_of(english, chinese))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bleu_1_equals_nltk_on_the_same_tokens(reference: str, prediction: str) -> None:
    from nltk.translate.bleu_score import sentence_bleu

    expected = (
        sentence_bleu([tokens(reference)], tokens(prediction), weights=(1,)) if tokens(prediction) else 0.0
    )
    # nltk puts the smallest float where no token is common.
    assert bleu_1(tokens(reference), tokens(prediction)) == pytest.approx(100 * expected, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(english, english)
def test_bleu_1_equals_sacrebleu_without_smoothing(reference: str, prediction: str) -> None:
    from sacrebleu.metrics import BLEU

    if not tokens(reference) or not tokens(prediction):
        return
    metric = BLEU(max_ngram_order=1, tokenize="none", smooth_method="none", effective_order=True)
    expected = metric.sentence_score(" ".join(tokens(prediction)), [" ".join(tokens(reference))]).score
    assert bleu_1(tokens(reference), tokens(prediction)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(chinese, chinese)
def test_rouge_on_chinese_equals_rouge_score_with_characters_as_tokens(
    reference: str, prediction: str
) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    class Characters:
        def tokenize(self, text: str) -> list[str]:
            return tokens(text)

    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=Characters())
    expected = scorer.score(reference, prediction)
    _, one, longest = score(reference, prediction)
    assert one == pytest.approx(100 * expected["rouge1"].fmeasure, abs=1e-6)
    assert longest == pytest.approx(100 * expected["rougeL"].fmeasure, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("肝右叶可见12.5mm囊肿。", ["肝", "右", "叶", "可", "见", "12", "5mm", "囊", "肿"]),
        ("CDFI：未见血流", ["cdfi", "未", "见", "血", "流"]),
        ("大小约１２ｍｍ", ["大", "小", "约", "12mm"]),
        ("Liver, S2-S3 (cyst)", ["liver", "s2", "s3", "cyst"]),
        ("𠮷", ["𠮷"]),
        ("，。 \n", []),
    ],
)
def test_chinese_is_cut_by_character_and_the_rest_by_word(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_scores_of_a_pair_worked_out_by_hand() -> None:
    reference, prediction = tokens("the liver is normal in size"), tokens("the the liver normal")
    assert bleu_1(reference, prediction) == pytest.approx(100 * (3 / 4) * 2.718281828**-0.5)
    assert rouge_1(reference, prediction) == pytest.approx(200 * 3 / 10)
    assert rouge_l(reference, prediction) == pytest.approx(200 * 3 / 10)
    assert lcs_length("ABCBDAB", "BDCABA") == 4


@pytest.mark.parametrize("text", ["肝脏大小形态正常。", "The liver is normal."])
def test_equal_texts_score_100_and_an_empty_prediction_0(text: str) -> None:
    assert score(text, text) == (100, 100, 100)
    assert score(text, "") == (0, 0, 0)
