"""Which frames and studies are kept (She et al., EchoVLM, section 3.1), each rejection with a reason code."""

from __future__ import annotations

from echoray.data.appearance import is_noise, is_other_picture
from echoray.data.panels import find_tissue, shows_two_panels
from echoray.types import Box, Frame, Study

TISSUE, COLOUR_FLOW = 1, 2  # Region Data Type (0018,6014)
TWO_DIMENSIONAL = 1  # Region Spatial Format (0018,6012)
_MAX_OVERLAP = 0.1  # share of the smaller region; more means one lies inside or over the other
_MIN_AREA = 0.2  # share of the largest region; smaller ones (a grey bar, an inset) are no view of their own
_BLANK_STD = 3.0
_LEAST_PX = 96  # a smaller picture has too little to be judged by


def frame_rejection(frame: Frame) -> str | None:
    """Why a frame is not used, or None.

    Where the Sequence of Ultrasound Regions (0018,6011) is absent, the pixels say what it would have said.
    """
    if len(scan_regions(frame)) > 1:
        return "multi_region"
    if float(frame.pixels.std()) < _BLANK_STD or is_noise(frame.pixels):
        return "blank"
    if frame.regions or min(frame.pixels.shape[:2]) < _LEAST_PX:
        return None
    tissue = find_tissue(frame.pixels)
    if is_other_picture(frame.pixels, tissue):
        return "not_ultrasound_image"
    if tissue.empty:
        return "blank"
    return "multi_region" if shows_two_panels(tissue) else None


def study_rejection(study: Study) -> str | None:
    """Why a study is not used, or None."""
    if study.report is None and not study.turns:
        return "no_report"
    if not study.frames:
        return "no_image"
    if study.system is None:
        return "unknown_system"
    return None


def scan_regions(frame: Frame) -> list[Box]:
    """The spatially separate tissue or colour regions of a frame.

    Physio traces and spectra have other data types; a colour box inside tissue, or a grey bar beside it, is
    not a second view.
    """
    boxes = [
        region.box
        for region in frame.regions
        if region.data_type in (TISSUE, COLOUR_FLOW) and region.spatial_format == TWO_DIMENSIONAL
    ]
    boxes.sort(key=_area, reverse=True)
    separate: list[Box] = []
    for box in boxes:
        if _area(box) < _MIN_AREA * _area(boxes[0]):
            continue
        if all(_overlap(box, other) <= _MAX_OVERLAP * _area(box) for other in separate):
            separate.append(box)
    return separate


def _area(box: Box) -> int:
    return max(0, box.x1 - box.x0) * max(0, box.y1 - box.y0)


def _overlap(a: Box, b: Box) -> int:
    return _area(Box(max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1)))
