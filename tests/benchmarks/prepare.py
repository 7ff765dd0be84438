"""From DICOM files to clean pictures: speed against a plain path, scaling, memory as the corpus grows.

``python -m tests.benchmarks.prepare frames`` decodes, de-identifies and resizes the same studies twice, on
one thread: by ``PrepareStudies``, and by the plain path that one would write first (every frame decoded, read
by RapidOCR with its defaults, every piece of text painted black, PIL, Qwen2-VL's image processor). Studies
are synthetic, and the real cines of deid-data; ours also looks at three times as many frames of a cine, of
which it keeps those that differ, and writes the study.
``... scaling`` runs the whole step on Ray with one and with two workers. ``... memory`` runs it on a corpus
and on one ten times as large and prints the most that the driver, and all that it started, held.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
from PIL import Image

from echoray.config import DataConfig, RunConfig, load_run
from echoray.data.corpus import make_corpus
from echoray.data.phantom import write_corpus
from echoray.data.prepare import PrepareStudies
from echoray.data.records import StudyRecord
from echoray.data.sources.dicom import evenly, to_rgb
from echoray.data.sources.index import StudyFiles, group_studies, list_source, read_header
from echoray.data.sources.samples import package_samples
from echoray.data.studies import prepare_studies
from echoray.model.base import WEIGHTS
from echoray.platform.runtime import ray_session
from echoray.storage import open_store
from tests.benchmarks.demo_resources import EVERY_S, pss_bytes
from tests.benchmarks.timing import timed

MAX_FRAMES = 8


def studies_in(folder: Path, num_studies: int, size: tuple[int, int]) -> list[StudyFiles]:
    """Synthetic studies without faults."""
    width, height = size
    faults = dict.fromkeys(("multi_region_rate", "no_report_rate", "corrupt_rate"), 0.0)
    phantom = load_run("tiny").merged(
        {
            "data": {
                "source": {
                    "phantom": {"num_studies": num_studies, "width": width, "height": height, **faults}
                }
            }
        }
    )
    assert phantom.data.source.phantom is not None
    write_corpus(folder, phantom.data.source.phantom, seed=5, language="en")
    return grouped(folder)


def real_cines_in(folder: Path) -> list[StudyFiles]:
    """The real cines of installed packages, each in a study of its own."""
    studies = []
    for one in package_samples():
        if "cine" in one.name.lower() or "multiframe" in one.name:
            (folder / one.name).mkdir()
            (folder / one.name / one.name).write_bytes(one.read_bytes())
            studies += grouped(folder / one.name)
    return studies


def grouped(folder: Path) -> list[StudyFiles]:
    """The studies below a folder."""
    files = list_source(open_store(str(folder)), "corpus").files
    return group_studies(files, [read_header(file) for file in files])


def plain_path(studies: list[StudyFiles], size_px: int) -> int:
    """Every key frame through OCR, black boxes, PIL and transformers' processor; the number of frames."""
    from rapidocr import RapidOCR
    from transformers import AutoImageProcessor

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine: Any = RapidOCR(params={"Global.log_level": "error", **threads})
    processor = AutoImageProcessor.from_pretrained(WEIGHTS)
    count = 0
    for study in studies:
        for file in study.files:
            dataset = pydicom.dcmread(io.BytesIO(file.read_bytes() or b""))
            if dataset.Modality != "US":
                continue
            frames = evenly(int(dataset.get("NumberOfFrames") or 1), MAX_FRAMES)
            for pixels in to_rgb(dataset, frames):
                found = engine(pixels[..., ::-1])
                clean = pixels.copy()
                for corners in found.boxes if found.boxes is not None else ():
                    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
                    clean[low[1] : high[1], low[0] : high[0]] = 0
                picture = Image.fromarray(clean).resize((size_px, size_px), Image.Resampling.BICUBIC)
                processor(images=[picture], return_tensors="np")
                count += 1
    return count


def our_path(worker: PrepareStudies, studies: list[StudyFiles]) -> list[StudyRecord]:
    """The records of the studies."""
    return [worker.prepare(one)[1] for one in studies]


def compare_frames(num_studies: int) -> None:
    """Print key frames per second of both paths and their ratio, in turns on the same studies."""
    import torch

    torch.set_num_threads(1)
    size_px = 392
    config = DataConfig.model_validate(
        {"deidentify": {"key_ref": "synthetic"}, "image_size_px": size_px, "max_frames": MAX_FRAMES}
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as real:
        studies = studies_in(Path(folder), num_studies, (800, 600))
        worker = PrepareStudies(config, b"key", seed=0)
        plain_path(studies[:1], size_px), worker.prepare(studies[0])  # both engines are loaded
        print(
            "| studies | key frames | plain path, frames/s | ours, frames/s | ratio |\n|---|---|---|---|---|"
        )
        chosen = [("synthetic", studies)]
        chosen += [(Path(one.files[0].path).name, [one]) for one in real_cines_in(Path(real))]
        for name, some in (*chosen, *chosen):
            slow, frames = timed(partial(plain_path, some, size_px))
            # A new worker: without the first round's caches.
            fast, _ = timed(partial(our_path, PrepareStudies(config, b"key", seed=0), some))
            rates = frames / slow, frames / fast
            print(
                f"| {name} | {frames} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} |",
                flush=True,
            )


def pipeline_run(workspace: str, num_studies: int, num_workers: int, *, pixels: bool) -> RunConfig:
    """A run of the tiny preset on its synthetic studies alone."""
    phantom = {"num_studies": num_studies, "width": 640, "height": 480}
    source = {"phantom": phantom, "package_samples": False}
    data = {"source": source, "num_workers": num_workers, "deidentify": {"pixels": pixels}}
    return load_run("tiny").merged({"workspace": workspace, "data": data})


def silent(step: str, done: int, total: int | None) -> None:
    return None


def compare_workers(num_studies: int) -> None:
    """Print the time of the step, corpus excluded, with one and with two workers."""
    seconds = {}
    for num_workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            run = pipeline_run(folder, num_studies, num_workers, pixels=True)
            with ray_session(run.cluster):
                corpus = make_corpus(run, silent)
                seconds[num_workers], _ = timed(partial(prepare_studies, run, corpus, silent))
    ratio = seconds[1] / seconds[2]
    print(
        f"{num_studies} studies: {seconds[1]:.1f} s with 1 worker, {seconds[2]:.1f} s with 2: {ratio:.2f} x"
    )


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The most that this process, and that its children together, held in GB (proportional set size)."""
    peak = {"driver": 0.0, "children": 0.0}
    stop = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(EVERY_S):
            own = me.memory_full_info().pss
            peak["driver"] = max(peak["driver"], own / 1e9)
            peak["children"] = max(peak["children"], (pss_bytes(me) - own) / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def compare_sizes(num_studies: int) -> None:
    """Print the peak memory of the step on a corpus and on one ten times as large."""
    print("| studies | driver, GB | workers and Ray, GB |\n|---|---|---|")
    for count in (num_studies, 10 * num_studies):
        with tempfile.TemporaryDirectory() as folder:
            run = pipeline_run(folder, count, 2, pixels=False)
            with ray_session(run.cluster):
                corpus = make_corpus(run, silent)
                with watched() as peak:
                    prepare_studies(run, corpus, silent)
            print(f"| {count} | {peak['driver']:.2f} | {peak['children']:.2f} |", flush=True)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("frames", "scaling", "memory"))
    parser.add_argument("--studies", type=int, help="number of synthetic studies")
    given = parser.parse_args()
    chosen, default = {
        "frames": (compare_frames, 20),
        "scaling": (compare_workers, 56),
        "memory": (compare_sizes, 100),
    }[given.what]
    chosen(given.studies or default)


if __name__ == "__main__":
    main()
