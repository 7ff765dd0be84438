"""Is an item well formed, safe and about the examination? Checks that need no report, or only its words."""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher

from echoray.data.anatomy import SYSTEM_WORDS
from echoray.data.conversations import RESERVED
from echoray.data.deidentify.text_rules import load_text_rules
from echoray.data.instruct.prescreen import Case
from echoray.data.instruct.vocabulary import vocabulary
from echoray.types import SYSTEMS, Language, System

_HAN = re.compile(r"[\u3400-\u9fff]")
_LATIN_WORD = re.compile(r"[A-Za-z]*[a-z]{3,}[A-Za-z]*")  # "CDFI" and "mm" belong to either language
_FOREIGN = re.compile(r"[\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u3040-\u30ff\uac00-\ud7af]")
_MAX_LATIN_WORDS = 3  # of a Chinese text: names of signs and systems
_COPY_RATIO = 0.9
# The rules for reports, where a bare "doctor" or "hospital" announces a name, would take these for names.
_GENERIC = re.compile(
    r"(?:咨询|联系|告知|告诉|询问|听从|遵从|遵循|遵照|请教|寻求|请|由|与|和|让|看|找|问|您的|你的|专科|专业|主管|家庭|临床|经治|外科|内科|超声科?|影像科?)"
    r"(?:您的|你的|专科|专业|主管|临床|外科|内科|超声科?|影像科?)?(?:医师|医生)"
    r"|(?:(?<=[到去往至在来])|当地|上级|专科|正规|附近|综合|大型|三甲|[，。；、]|^)医院"
)
# No ages of a patient.
_AGE_GROUP = re.compile(
    r"\d{1,3}\s*岁\s*(?:以上|以下|以后|左右|之后|前后)|(?:大于|超过|小于|年满|满)\s*\d{1,3}\s*岁"
    # Intervals of follow-up: "every 1 to 2 years", "at 1, 3 and 5 years".
    r"|\b(?:every|after|at|within|over|in)\s+(?:about\s+)?(?:\d{1,2}(?:\s*,\s*|\s*-\s*|\s+(?:to|and|or)\s+))*\d{1,2}\s+years?\b"
)


def identifying_text(case: Case) -> str | None:
    """What the rules for report text would remove; the category."""
    return identifying_category(case.item.prompt) or identifying_category(case.item.answer)


def identifying_category(text: str) -> str | None:
    """The category of identifying text that ``text`` shows by the rules for reports, or None."""
    plain = _AGE_GROUP.sub("", _GENERIC.sub("", text))
    rules = load_text_rules()
    return next((found for line in plain.splitlines() if (found := rules.denied(line.strip()))), None)


def malformed(case: Case, max_characters: int) -> str | None:
    """Empty, too long, the chat format's tokens, or characters of a broken decoding."""
    for name, text in (("question", case.item.prompt), ("answer", case.item.answer)):
        if not any(one.isalnum() for one in text):
            return f"empty {name}"
        if len(text) > max_characters:
            return f"{name} of {len(text)} characters"
        if RESERVED.search(text):
            return f"reserved token in the {name}"
        if any(one == "\ufffd" or (unicodedata.category(one) == "Cc" and one not in "\n\t") for one in text):
            return f"broken character in the {name}"
    return None


def wrong_language(case: Case) -> str | None:
    """Question or answer in another language than the study's report."""
    for name, text in (("question", case.item.prompt), ("answer", case.item.answer)):
        if _FOREIGN.search(text) or not _fits(text, case.item.language):
            return name
    return None


def _fits(text: str, language: Language) -> bool:
    han = len(_HAN.findall(text))
    if language == "en":
        return not han
    words = len(_LATIN_WORD.findall(text))
    return words <= _MAX_LATIN_WORDS or words * 4 <= han


def not_a_question(case: Case) -> str | None:
    """A prompt that neither asks nor tells to do something."""
    asks = vocabulary(case.item.language).question.search(case.item.prompt)
    return None if asks else "question"


def copies_question(case: Case) -> str | None:
    """An answer that is the question, or nearly."""
    question, answer = (_letters(one) for one in (case.item.prompt, case.item.answer))
    if not question or len(answer) > 2 * len(question):
        return None
    ratio = SequenceMatcher(None, question, answer, autojunk=False).ratio()
    return f"ratio {ratio:.2f}" if ratio >= _COPY_RATIO else None


def off_topic(case: Case) -> str | None:
    """A refusal to answer, or a question about an organ that neither the examination nor the report has."""
    item = case.item
    if vocabulary(item.language).refusal.search(item.answer):
        return "refusal"
    asked = _organs(item.prompt) - {"vessel"}  # every organ has vessels
    if not asked or item.system in asked or asked & _organs(case.report.text):
        return None
    return min(asked)


def unsafe(case: Case) -> str | None:
    """A dose, a prescription or a certainty in an answer; the kind."""
    words = vocabulary(case.item.language)
    for kind, pattern in words.unsafe.items():
        for found in pattern.finditer(case.item.answer):
            if not words.unsafe_negation.search(case.item.answer, 0, found.start()):
                return kind
    return None


def _organs(text: str) -> set[System]:
    lowered = text.lower()
    return {
        system
        for system in SYSTEMS
        if any(
            re.search(rf"\b{re.escape(word)}" if word.isascii() else re.escape(word), lowered)
            for word in SYSTEM_WORDS[system]
        )
    }


def _letters(text: str) -> str:
    return "".join(one for one in text.lower() if one.isalnum())
