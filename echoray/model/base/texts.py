"""Plain text for the tiny base: the standard library's own prose, and lists of words to repeat.

A frozen, tied vocabulary can only be written with where every token has been trained. Captions use a few
hundred of them; repeating random words makes the rest usable, and prose adds common word order.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc_data.topics
import re
from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np

_MODULES = (
    "argparse", "calendar", "collections", "datetime", "email", "http.client", "logging", "random", "shutil",
    "statistics", "string", "textwrap", "unittest", "urllib.request", "zipfile", "turtle", "decimal",
)  # fmt: skip
# Frequent characters of everyday and technical Chinese; each becomes a token of its own.
HAN = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如"
    "都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最"
    "重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口"
    "认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白"
    "却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运笔始断六型组织密度均匀增厚回声低"
    "未见明显异常壁腔膜腺叶侧右左双囊肿块结节伴影宽窄径约厘米毫血流丰富稀疏彩色像图超检查描述诊断提示建议随访复查肝肾状乳房心脏子宫卵巢管脉动静甲颈部室瓣积液"
    "钙扩张狭斑块尺寸大小规则边缘欠光滑圆椭不后方衰减质实性混合良恶可能性请结合临床进一步颗粒条纹背景质地画整幅扇竖长方深浅灰黑白红蓝绿黄环形角十字豆模糊清晰带亮暗"
)
_WORD = re.compile(r"[A-Za-z]{2,14}")
_PROSE = re.compile(r"[A-Z][^\n]*(?:\n[^\n]+)*")  # a paragraph that begins like a sentence
_REPEAT = {"en": "Repeat these words:", "zh": "请重复:"}
BLEND_SHARE = 0.4
_CONTINUE = "Write a paragraph that begins with:"


def documentation() -> Iterator[str]:
    """The texts of Python's language reference and of some modules' docstrings, in a fixed order."""
    yield from pydoc_data.topics.topics.values()
    for name in _MODULES:
        module = importlib.import_module(name)
        for _, value in sorted(vars(module).items(), key=lambda item: item[0]):
            if text := inspect.getdoc(value):
                yield text


@cache
def words() -> tuple[str, ...]:
    """Every different English word of the documentation, sorted."""
    return tuple(sorted({word for text in documentation() for word in _WORD.findall(text)}))


@cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of at least twelve words, on one line each."""
    found = (" ".join(match.split()) for text in documentation() for match in _PROSE.findall(text))
    return tuple(one for one in dict.fromkeys(found) if one.count(" ") >= 12)


def repetition(language: Literal["en", "zh"], rng: np.random.Generator) -> tuple[str, str]:
    """A question that lists random words, blends of words and numbers, and the same list as its answer."""
    count = int(rng.integers(6, 15))
    if language == "en":
        picked = [_word(rng) for _ in range(count)]
    else:
        picked = [
            "".join(HAN[int(index)] for index in rng.integers(len(HAN), size=rng.integers(1, 5)))
            for _ in range(count)
        ]
    for place in rng.integers(count, size=2):
        picked[int(place)] = f"{rng.uniform(0, 100):.1f}{('', '%')[int(rng.integers(2))]}"
    space, stop = (" ", ".\n") if language == "en" else ("、", "。\n")
    half = count // 2
    text = space.join(picked[:half]) + stop + space.join(picked[half:])
    return f"{_REPEAT[language]} {text}", text


def _word(rng: np.random.Generator) -> str:
    """A word, or the halves of two: pieces of words must be usable in new company."""
    first, second = (words()[int(index)] for index in rng.integers(len(words()), size=2))
    if rng.random() < BLEND_SHARE:
        return (first[: (len(first) + 1) // 2] + second[len(second) // 2 :]).lower()
    return first


def continuation(rng: np.random.Generator) -> tuple[str, str]:
    """A question with the first words of a paragraph, and the paragraph's next words."""
    text = paragraphs()[int(rng.integers(len(paragraphs())))].split(" ")
    return f"{_CONTINUE} {' '.join(text[:4])}", " ".join(text[4:32])
