"""Quality control of instruction data (She et al., EchoVLM, appendix A): pre-screening, review, feedback."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from echoray.config.base import Section

RuleJudgeName = Literal["consistency", "safety", "language"]


class ScreenConfig(Section):
    """Who judges the generated items, how many of them experts see, and when a source is suspended."""

    judges: tuple[RuleJudgeName, ...] = Field(
        ("consistency", "safety", "language"), description="rule judges, each looks at its own subject"
    )
    pool: tuple[str, ...] = Field(
        (), description="endpoints of instruct.members, by name, that judge open items; the majority decides"
    )
    rules_veto: bool = Field(
        True, description="a rule judge's rejection stands; off: it is one vote of the majority"
    )
    max_characters: int = Field(4000, ge=1, description="of a question or an answer; longer is malformed")
    sample_size: int = Field(
        40_000, ge=1, description="open items for expert review, all where there are fewer; the paper: 40,000"
    )
    threshold: float = Field(
        0.10,
        gt=0,
        lt=1,
        description="a set is suspended when the lower bound of its rejection rate exceeds this",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the rates' Wilson intervals")
    min_reviewed: int = Field(20, ge=1, description="sets with fewer reviewed items are never suspended")
