"""Generic synthetic pictures with captions in English and Chinese; none shows or names ultrasound.

A scene is an aperture (full, wide fan, narrow fan, tall rectangle), a textured ground or horizontal layers,
and up to three objects with shape, brightness or colour, size, place, outline and an optional streak below.
Pictures are (H, W, 3) uint8; the same seed and index give the same picture and caption on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

APERTURES = ("full", "wide fan", "narrow fan", "tall rectangle")
TEXTURES = ("smooth", "fine grain", "coarse grain", "horizontal stripes", "vertical stripes", "spots")
GREYS = ("black", "dark grey", "grey", "light grey", "white")
COLOURS = ("red", "blue", "green", "yellow")
SHAPES = ("circle", "ellipse", "square", "ring", "bar", "triangle", "cross", "bean")
SIZES = ("small", "medium", "large")
ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "centre", "right")
OUTLINES = ("sharp", "blurred")
STREAKS = ("none", "bright", "dark")

ZH = {
    "full": "整幅画面", "wide fan": "宽扇形画面", "narrow fan": "窄扇形画面",
    "tall rectangle": "竖长方形画面",
    "smooth": "光滑", "fine grain": "细颗粒", "coarse grain": "粗颗粒", "horizontal stripes": "横条纹",
    "vertical stripes": "竖条纹", "spots": "斑点",
    "black": "黑色", "dark grey": "深灰色", "grey": "灰色", "light grey": "浅灰色", "white": "白色",
    "red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色",
    "circle": "圆形", "ellipse": "椭圆形", "square": "方形", "ring": "环形", "bar": "长条",
    "triangle": "三角形",
    "cross": "十字形", "bean": "豆形",
    "small": "小", "medium": "中等", "large": "大",
    "upper": "上方", "middle": "中间", "lower": "下方", "left": "左侧", "centre": "中央", "right": "右侧",
    "sharp": "边界清晰", "blurred": "边界模糊", "bright": "亮", "dark": "暗",
}  # fmt: skip

_LEVELS = {"black": 8, "dark grey": 62, "grey": 118, "light grey": 178, "white": 240}
_RGB = {"red": (215, 40, 35), "blue": (40, 70, 225), "green": (40, 190, 60), "yellow": (225, 205, 45)}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; ``y`` and ``x`` are the centre and ``r`` the radius in shares of the width."""

    shape: str
    tone: str
    size: str
    row: str
    column: str
    outline: str
    streak: str
    y: float
    x: float
    r: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    aperture: str
    layers: tuple[tuple[str, str], ...]  # (texture, grey) from top to bottom; one layer is a plain ground
    things: tuple[Thing, ...] = field(default=())


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; places of objects do not repeat."""
    num_layers = 1 if rng.random() < 0.6 else int(rng.integers(2, 5))
    layers = tuple(
        (str(rng.choice(TEXTURES)), str(rng.choice(GREYS[1:4] if num_layers == 1 else GREYS)))
        for _ in range(num_layers)
    )
    aperture = str(rng.choice(APERTURES))
    cells = rng.permutation(9)[: rng.choice(4, p=(0.1, 0.5, 0.25, 0.15))]
    ground = layers[0][1] if num_layers == 1 else None
    return Scene(aperture, layers, tuple(_sample_thing(rng, int(cell), ground, aperture) for cell in cells))


def _sample_thing(rng: np.random.Generator, cell: int, ground: str | None, aperture: str) -> Thing:
    if rng.random() < 0.2:
        tone = str(rng.choice(COLOURS))
    else:
        tone = str(rng.choice([grey for grey in GREYS if grey != ground]))
    size = int(rng.integers(3))
    row, column = divmod(cell, 3)
    squeeze = 0.5 if aperture in ("tall rectangle", "narrow fan") else 0.8
    y = 0.22 + 0.28 * row + rng.uniform(-0.04, 0.04)
    x = 0.5 + (0.28 * (column - 1) + rng.uniform(-0.04, 0.04)) * squeeze
    r = (0.06, 0.10, 0.15)[size] * rng.uniform(0.9, 1.1)
    streak = str(rng.choice(STREAKS, p=(0.6, 0.2, 0.2)))
    shape, outline = str(rng.choice(SHAPES)), str(rng.choice(OUTLINES))
    return Thing(shape, tone, SIZES[size], ROWS[row], COLUMNS[column], outline, streak, y, x, r)


def draw(scene: Scene, size_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a scene as (size_px, size_px, 3) uint8."""
    y_HW, x_HW = np.mgrid[0:size_px, 0:size_px] / size_px
    grey_HW = _ground(scene, size_px, y_HW, x_HW, rng)
    image_HW3 = np.repeat(grey_HW[..., None], 3, axis=2)
    for thing in scene.things:
        _paint(image_HW3, thing, y_HW, x_HW, rng)
    image_HW3 *= _aperture(scene.aperture, y_HW, x_HW)[..., None]
    return np.clip(image_HW3, 0, 255).astype(np.uint8)


def _texture(
    kind: str, size_px: int, y_HW: NDArray[np.float64], x_HW: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    if kind == "smooth":
        return np.ones((size_px, size_px))
    if kind.endswith("stripes"):
        axis = y_HW if kind.startswith("horizontal") else x_HW
        return 1 + 0.45 * np.sign(np.sin(2 * np.pi * axis * rng.uniform(7, 12)))
    if kind == "spots":
        noise = gaussian_filter(rng.standard_normal((size_px, size_px)), size_px / 50)
        return np.where(noise > 1.3 * noise.std(), 1.8, 0.85)
    sigma = size_px / (240 if kind == "fine grain" else 75)
    real, imaginary = (gaussian_filter(rng.standard_normal((size_px, size_px)), sigma) for _ in range(2))
    amplitude = np.hypot(real, imaginary)
    return np.log1p(6 * amplitude / amplitude.mean()) / np.log(7)


def _ground(
    scene: Scene, size_px: int, y_HW: NDArray[np.float64], x_HW: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    edges = np.linspace(0, 1, len(scene.layers) + 1)
    wave = 0.02 * np.sin(2 * np.pi * (x_HW * rng.uniform(0.5, 2) + rng.random()))
    out = np.zeros((size_px, size_px))
    for index, (texture, grey) in enumerate(scene.layers):
        painted = _LEVELS[grey] * _texture(texture, size_px, y_HW, x_HW, rng)
        inside = (y_HW + wave >= edges[index]) if index else np.ones_like(y_HW, bool)
        out = np.where(inside, painted, out)
    return out * rng.uniform(0.9, 1.1)


def _inside(thing: Thing, y_HW: NDArray[np.float64], x_HW: NDArray[np.float64]) -> NDArray[np.bool_]:
    dy, dx, r = y_HW - thing.y, x_HW - thing.x, thing.r
    distance = np.hypot(dy, dx)
    match thing.shape:
        case "circle":
            return distance < r
        case "ellipse":
            return np.hypot(dy / 0.6, dx / 1.4) < r
        case "square":
            return (np.abs(dy) < r * 0.9) & (np.abs(dx) < r * 0.9)
        case "ring":
            return (distance < r) & (distance > 0.55 * r)
        case "bar":
            return (np.abs(dy) < r * 0.35) & (np.abs(dx) < r * 1.7)
        case "triangle":
            return (dy < r * 0.8) & (dy > -r + 2 * np.abs(dx))
        case "cross":
            return ((np.abs(dy) < r * 0.3) & (np.abs(dx) < r)) | ((np.abs(dx) < r * 0.3) & (np.abs(dy) < r))
        case _:
            return (np.hypot(dy / 0.75, dx / 1.3) < r) & (np.hypot(dy + 0.55 * r, dx) > 0.5 * r)


def _paint(
    image_HW3: NDArray[np.float64],
    thing: Thing,
    y_HW: NDArray[np.float64],
    x_HW: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    if thing.streak != "none":
        below = (
            (y_HW > thing.y) & (np.abs(x_HW - thing.x) < thing.r * 0.7) & (y_HW < thing.y + thing.r + 0.25)
        )
        image_HW3[below] = (
            image_HW3[below] * 1.5 + 35 if thing.streak == "bright" else image_HW3[below] * 0.25
        )
    mask_HW = _inside(thing, y_HW, x_HW).astype(float)
    if thing.outline == "blurred":
        mask_HW = gaussian_filter(mask_HW, image_HW3.shape[0] / 45)
    tone = _RGB[thing.tone] if thing.tone in _RGB else (_LEVELS[thing.tone],) * 3
    grain = 1 + 0.12 * rng.standard_normal(mask_HW.shape)[..., None]
    image_HW3 += mask_HW[..., None] * (np.asarray(tone, float) * grain - image_HW3)


def _aperture(kind: str, y_HW: NDArray[np.float64], x_HW: NDArray[np.float64]) -> NDArray[np.bool_]:
    if kind == "full":
        return np.ones_like(y_HW, bool)
    if kind == "tall rectangle":
        return np.abs(x_HW - 0.5) < 0.32
    apex, half_angle = (-0.25, 0.55) if kind == "wide fan" else (0.02, 0.62)
    dy, dx = y_HW - apex, x_HW - 0.5
    radius = np.hypot(dy, dx)
    top = 0.30 if kind == "wide fan" else 0.0
    return (np.abs(np.arctan2(dx, dy)) < half_angle) & (radius > top) & (radius < 0.97 - apex)


def describe(scene: Scene, language: Literal["en", "zh"], rng: np.random.Generator) -> str:
    """A caption of one to five sentences that follows from the scene."""
    return _describe_en(scene, rng) if language == "en" else _describe_zh(scene, rng)


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _describe_en(scene: Scene, rng: np.random.Generator) -> str:
    frame = {"full": "The whole picture", "tall rectangle": "A tall rectangle"}.get(
        scene.aperture, f"A {scene.aperture}"
    )
    if len(scene.layers) == 1:
        texture, grey = scene.layers[0]
        parts = [f"{frame} {_pick(rng, 'shows', 'contains')} a {grey} ground with {texture} texture."]
    else:
        names = ", then ".join(f"{grey} {texture}" for texture, grey in scene.layers)
        verb = _pick(rng, "shows", "contains")
        parts = [f"{frame} {verb} {len(scene.layers)} layers from top to bottom: {names}."]
    if not scene.things:
        parts.append(_pick(rng, "No object is seen.", "There is no object in it."))
    for thing in scene.things:
        where = f"{thing.row} {thing.column}"
        streak = "" if thing.streak == "none" else f", with a {thing.streak} streak below it"
        what = f"{thing.size} {thing.tone} {thing.shape}"
        parts.append(
            _pick(
                rng,
                f"A {what} with {thing.outline} outline is in the {where}{streak}.",
                f"In the {where} there is a {what}, outline {thing.outline}{streak}.",
            )
        )
    return " ".join(parts)


def _describe_zh(scene: Scene, rng: np.random.Generator) -> str:
    frame = ZH[scene.aperture]
    if len(scene.layers) == 1:
        texture, grey = scene.layers[0]
        parts = [f"{frame}{_pick(rng, '可见', '显示')}{ZH[grey]}背景,质地{ZH[texture]}。"]
    else:
        names = "、".join(ZH[grey] + ZH[texture] for texture, grey in scene.layers)
        parts = [f"{frame}自上而下{_pick(rng, '可见', '显示')}{len(scene.layers)}层:{names}。"]
    if not scene.things:
        parts.append(_pick(rng, "未见物体。", "其中没有物体。"))
    for thing in scene.things:
        where = ZH[thing.row] + ZH[thing.column]
        streak = "" if thing.streak == "none" else f",下方有{ZH[thing.streak]}条带"
        what = f"{ZH[thing.size]}的{ZH[thing.tone]}{ZH[thing.shape]}"
        parts.append(f"{where}{_pick(rng, '可见', '有')}一个{what},{ZH[thing.outline]}{streak}。")
    return "".join(parts)


def questions(scene: Scene, language: Literal["en", "zh"], rng: np.random.Generator) -> tuple[str, str]:
    """One question and its answer about the scene."""
    count = len(scene.things)
    english = language == "en"
    if count and rng.random() < 0.75:
        thing = scene.things[int(rng.integers(count))]
        if english:
            where = f"{thing.row} {thing.column}"
            options = (
                (f"What is in the {where}?", f"A {thing.size} {thing.tone} {thing.shape}."),
                (f"Where is the {thing.tone} {thing.shape}?", f"In the {where}."),
                (
                    f"What is below the {thing.shape}?",
                    "Nothing." if thing.streak == "none" else f"A {thing.streak} streak.",
                ),
            )
        else:
            where = ZH[thing.row] + ZH[thing.column]
            options = (
                (f"{where}有什么?", f"一个{ZH[thing.size]}的{ZH[thing.tone]}{ZH[thing.shape]}。"),
                (f"{ZH[thing.tone]}{ZH[thing.shape]}在哪里?", f"在{where}。"),
                (
                    f"{ZH[thing.shape]}下方有什么?",
                    "没有。" if thing.streak == "none" else f"{ZH[thing.streak]}条带。",
                ),
            )
        return options[int(rng.integers(3))]
    if rng.random() < 0.5:
        return ("How many objects are there?", f"{count}.") if english else ("有几个物体?", f"{count}个。")
    if english:
        return "What is the outline of the picture?", f"{scene.aperture.capitalize()}."
    return "画面是什么形状?", f"{ZH[scene.aperture]}。"
