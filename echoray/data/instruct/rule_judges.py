"""The embedded pool: judges by rules, offline and deterministic, each with a subject of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from echoray.config.screen import RuleJudgeName, ScreenConfig
from echoray.data.deidentify.rules import rules_digest
from echoray.data.instruct import consistency, wording
from echoray.data.instruct.items import Form
from echoray.data.instruct.prescreen import Case, Reason, Verdict
from echoray.data.instruct.vocabulary import vocabulary_digest

REVISION = 1  # raise it when a check changes in code


@dataclass(frozen=True)
class Check:
    """One rule; ``find`` says in some words what is wrong, or None."""

    reason: Reason
    find: Callable[[Case], str | None]
    forms: tuple[Form, ...] = ("open",)


@dataclass(frozen=True)
class RuleJudge:
    """Rejects what any of its checks finds, for the first one's reason."""

    name: str
    checks: tuple[Check, ...]
    veto: bool

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that a check of it looks at."""
        return tuple(sorted({form for check in self.checks for form in check.forms}))

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""
        return [self._verdict(one) for one in cases]

    def _verdict(self, case: Case) -> Verdict:
        for check in self.checks:
            found = check.find(case) if case.item.form in check.forms else None
            if found is not None:
                return Verdict(self.name, False, check.reason, found)
        return Verdict(self.name, True)


def rule_judges(config: ScreenConfig) -> list[RuleJudge]:
    """The configured judges, in the configured order."""
    checks = _checks(config.max_characters)
    return [RuleJudge(name, checks[name], config.rules_veto) for name in config.judges]


def rules_version() -> list[str | int]:
    """Equal versions and an equal configuration judge alike."""
    return [REVISION, vocabulary_digest(), rules_digest()]


def _checks(max_characters: int) -> dict[RuleJudgeName, tuple[Check, ...]]:
    both: tuple[Form, ...] = ("open", "closed")
    return {
        "consistency": (
            Check("contradicts_report", consistency.finding_contradicted),
            Check("contradicts_report", consistency.side_contradicted),
            Check("contradicts_report", consistency.grade_contradicted),
            Check("contradicts_report", consistency.echogenicity_contradicted),
            Check("not_supported", consistency.measurement_not_in_report),
            Check("not_supported", consistency.finding_not_reported),
        ),
        "safety": (
            Check("identifying_text", wording.identifying_text, both),
            Check("unsafe_advice", wording.unsafe),
        ),
        "language": (
            Check("malformed", partial(wording.malformed, max_characters=max_characters), both),
            Check("wrong_language", wording.wrong_language),
            Check("off_topic", wording.off_topic),
            Check("not_a_question", wording.not_a_question),
            Check("copies_question", wording.copies_question),
        ),
    }
