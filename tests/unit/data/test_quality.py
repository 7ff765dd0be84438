"""Which frames and studies are kept: by the regions tag of real and synthetic files, and by the pixels."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest

from echoray.data.fingerprint import frame_fingerprint, near_any
from echoray.data.phantom import synthesize_study
from echoray.data.quality import frame_rejection, scan_regions, study_rejection
from echoray.data.sources.dicom import read_regions
from echoray.data.sources.samples import package_samples
from echoray.types import Box, Frame, Region, Report, Study

SIZE = {"width": 640, "height": 480}
SCAN = synthesize_study(0, seed=11, language="en", **SIZE).frames[0].pixels
LEFT, RIGHT = Box(20, 50, 310, 430), Box(330, 50, 620, 430)
TISSUE, COLOUR, SPECTRUM = (1, 1), (2, 1), (3, 3)  # (data type, spatial format)


def framed(*regions: tuple[Box, tuple[int, int]]) -> Frame:
    return Frame(SCAN, tuple(Region(box, *kind, None) for box, kind in regions))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (framed(), None),
        (framed((LEFT, TISSUE)), None),
        (framed((LEFT, TISSUE), (RIGHT, TISSUE)), "multi_region"),
        (framed((LEFT, TISSUE), (RIGHT, COLOUR)), "multi_region"),
        (framed((LEFT, TISSUE), (Box(100, 100, 200, 200), COLOUR)), None),  # a Doppler box
        (framed((Box(100, 100, 200, 200), COLOUR), (LEFT, TISSUE)), None),  # whatever their order
        (framed((LEFT, TISSUE), (RIGHT, SPECTRUM)), None),
        (framed((LEFT, TISSUE), (Box(5, 50, 18, 250), TISSUE)), None),  # a grey bar that calls itself tissue
        (framed((LEFT, TISSUE), (Box(300, 50, 590, 430), TISSUE)), "multi_region"),  # edges that just overlap
    ],
)
def test_two_views_beside_each_other_are_rejected_and_parts_of_one_are_not(
    frame: Frame, reason: str | None
) -> None:
    assert frame_rejection(frame) == reason


def test_regions_of_real_files_are_counted_as_a_reader_would() -> None:
    views = {}
    for sample in package_samples():
        header = pydicom.dcmread(io.BytesIO(sample.read_bytes()), stop_before_pixels=True)
        regions = read_regions(header)
        views[sample.name] = (len(regions), len(scan_regions(Frame(SCAN, regions))))
    assert views["OBXXXX1A.dcm"] == (2, 1)  # tissue and a physio trace
    assert views["gdcm-US-ALOKA-16.dcm"] == (3, 2)  # two views and a grey bar
    assert views["JPGLosslessP14SV1_1s_1f_8b.dcm"] == (1, 1)
    assert views["US1_UNCR.dcm"] == (0, 0)


def test_phantom_views_are_counted_by_their_truth() -> None:
    for index in range(7):
        for frame in synthesize_study(index, seed=11, language="en", **SIZE).frames:
            assert len(scan_regions(frame)) == 1 and frame_rejection(frame) is None
    double = synthesize_study(3, seed=11, language="en", fault="multi_region", **SIZE)
    assert frame_rejection(double.frames[0]) == "multi_region"


def test_a_frame_without_picture_and_a_frame_seen_before_are_rejected() -> None:
    frames = [synthesize_study(index, seed=11, language="en", **SIZE).frames[0] for index in range(3)]
    seen = [frame_fingerprint(frame.pixels) for frame in frames]
    assert frame_rejection(Frame(np.full((480, 640, 3), 7, np.uint8))) == "blank"
    for number, frame in enumerate(frames):
        others = seen[:number] + seen[number + 1 :]
        assert frame_rejection(frame) is None and not near_any(seen[number], others)
        touched = frame.pixels.copy()
        touched[200:203, 300:303] = 255  # nine pixels are no other picture
        assert near_any(frame_fingerprint(touched), [seen[number]])


def test_a_study_needs_a_report_then_an_image_then_a_system() -> None:
    whole = Study("h", "p", "liver", "en", (framed(),), Report("Normal liver.", ""), "dicom")
    assert study_rejection(whole) is None
    assert study_rejection(replace(whole, report=None)) == "no_report"
    assert study_rejection(replace(whole, frames=())) == "no_image"
    assert study_rejection(replace(whole, system=None)) == "unknown_system"
    assert study_rejection(replace(whole, report=None, frames=(), system=None)) == "no_report"
