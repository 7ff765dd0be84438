"""Reports that follow from the ground truth; the sentences are in ``phrases_<language>.yaml``."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from echoray.data.phantom.identity import Identity
from echoray.data.phantom.scene import Anatomy, Finding
from echoray.types import Language, Report


@lru_cache(maxsize=2)
def load_phrases(language: Language) -> dict[str, Any]:
    """The sentence tables of a language."""
    import yaml

    source = resources.files("echoray.data.phantom") / f"phrases_{language}.yaml"
    phrases: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    return phrases


def label_text(anatomy: Anatomy, language: Language) -> str:
    """The anatomical label burned into a frame: by side, by place of the finding, or the system's own."""
    labels = load_phrases(language)["systems"][anatomy.system]["label"]
    place = anatomy.findings[0].place if anatomy.findings else "none"
    return str(labels[anatomy.side] if anatomy.side in labels else labels[place])


def compose_report(
    anatomy: Anatomy, identity: Identity, language: Language, rng: np.random.Generator
) -> tuple[Report, Report]:
    """The report as a hospital would store it, with identifiers, and the same report without them."""
    phrases = load_phrases(language)
    system = phrases["systems"][anatomy.system]
    finding = anatomy.findings[0] if anatomy.findings else None
    kind = system[finding.kind if finding else "normal"]
    values = _values(phrases, anatomy, finding)
    glue = "" if language == "zh" else " "

    def say(variants: list[str], fields: dict[str, Any]) -> str:
        return variants[int(rng.integers(len(variants)))].format(**fields)

    # A report is headed by what was examined.
    sentences = [system["examination"], say(phrases["technique"], values)]
    sentences += [say(variants, values) for variants in system["baseline"]]
    sentences.append(say(kind["finding"], values))
    for sign in ("shadow", "enhancement"):
        if finding and getattr(finding, sign):
            sentences.append(say(phrases["sign"][sign], values))
    if finding and finding.doppler and "doppler" not in kind:
        sentences.append(say(phrases["doppler"][finding.doppler], values))
    findings, impression = glue.join(sentences), say(kind["impression"], values)
    who = identity.fields() | {"sex_word": phrases["sex"][identity.patient.sex]}
    opening, closing = (say(phrases["identity"][part], who) for part in ("opening", "closing"))
    return Report(f"{opening}{glue}{findings}", f"{impression}{glue}{closing}"), Report(findings, impression)


def _values(phrases: dict[str, Any], anatomy: Anatomy, finding: Finding | None) -> dict[str, Any]:
    values: dict[str, Any] = {"side": phrases["side"].get(anatomy.side, "")}
    if finding is None:
        return values
    size = phrases["size"]
    echo = phrases["echo"][finding.echogenicity]
    return values | {
        "size": size["join"].join(f"{axis:.1f}" for axis in finding.size_mm) + size["unit"],
        "echo": echo,
        "echo_caps": echo.capitalize(),
        "place": phrases["systems"][anatomy.system]["place"][finding.place],
        "percent": finding.percent,
    }
