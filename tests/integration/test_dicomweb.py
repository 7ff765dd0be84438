"""Studies from a DICOMweb archive, a real Orthanc: the same as from a folder, whatever happens meanwhile."""

from __future__ import annotations

import io
import logging
import pickle
import re
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file
from ray.exceptions import RayTaskError

from echoray import artifacts
from echoray.config import DataConfig, RunConfig, load_run
from echoray.config.data import DicomwebConfig, PhantomConfig
from echoray.data.phantom import write_corpus
from echoray.data.phantom.dicom import to_bytes
from echoray.data.prepare import STEPS, PrepareStudies
from echoray.data.sources.dicomweb import list_dicomweb
from echoray.data.sources.index import Listing, group_studies, list_source, read_header
from echoray.data.sources.samples import package_samples
from echoray.data.studies import prepare_studies
from echoray.errors import ConfigError, InputDataError, StorageError
from echoray.platform.failures import ending_of
from echoray.storage import open_store, store_of
from echoray.types import Rejection
from tests.integration.orthanc import PASSWORD, PLACE, USER, Orthanc
from tests.integration.test_data_pipeline import ledger_of, rows_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (PLACE / "version").is_file(), reason="no Orthanc here: `make orthanc` unpacks it"
    ),
]

SEED = 3
LATE = {"StudyDate": "20160101-20991231"}
AUTH = "env:ECHORAY_TEST_ARCHIVE"
UID = re.compile(r"\d+\.\d+\.\d+\.\d+\.\d+")  # the root of a UID, and no address of this machine
PHANTOM = PhantomConfig(
    num_studies=7, width=320, height=240, corrupt_rate=0, patients_with_two_studies_rate=0.5
)
DATA: dict[str, Any] = {
    "source": {"phantom": None, "package_samples": False},
    "deidentify": {"pixels": False, "pixels_cleaned_elsewhere": True, "key_ref": "env:ECHORAY_TEST_KEY"},
    "image_size_px": 56,
    "num_workers": 1,
}
Prepared = tuple[list[dict[str, Any]], list[Rejection], Counter[str]]


@pytest.fixture(scope="module", autouse=True)
def secrets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHORAY_TEST_ARCHIVE", f"{USER}:{PASSWORD}")
        patch.setenv("ECHORAY_TEST_KEY", "key")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic studies and the packages' real files, no instance twice: an archive would keep one."""
    out = tmp_path_factory.mktemp("studies")
    write_corpus(out, PHANTOM, seed=7, language="en")
    (out / "truth.jsonl").unlink()
    known: set[str] = set()
    for sample in package_samples():
        if sample.size_bytes < 2_000_000:
            content = sample.read_bytes()
            instance = str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)
            if instance not in known:
                (out / sample.name).write_bytes(content)
            known.add(instance)
    return out


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.dcm"))]


@pytest.fixture(scope="module")
def archive(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc")).start()
    try:
        server.store(contents(folder))
        yield server
    finally:
        server.kill()


def others() -> list[bytes]:
    """Studies of another modality, of which nothing is read."""
    slices = []
    for number in range(5):
        one = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.3.4.5.{number}", f"1.2.3.4.5.{number}.1"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.5.{number}.1.1"
        slices.append(to_bytes(one))
    return slices


def section(server: Orthanc, **values: Any) -> DicomwebConfig:
    return DicomwebConfig(**{"url": server.url, "auth_ref": AUTH, "retries": 1, **values})


def prepared(listing: Listing, meanwhile: Callable[[], None] = lambda: None) -> Prepared:
    """What becomes of the listed files; ``meanwhile`` happens between listing and reading."""
    studies = group_studies(listing.files, [read_header(file) for file in listing.files])
    meanwhile()
    worker = pickle.loads(pickle.dumps(PrepareStudies(DataConfig.model_validate(DATA), b"key", seed=SEED)))
    rows: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    counts = Counter[str]()
    for one in pickle.loads(pickle.dumps(studies)):
        row, record = worker.prepare(one)
        rows += [] if row is None else [row]
        rejections += record.rejections
        counts.update(record.counts)
    for step in STEPS:
        lost = sum(one.step == step for one in rejections)
        assert counts[f"{step}_in"] == counts[f"{step}_out"] + lost
    return sorted(rows, key=lambda row: str(row["study_hash"])), rejections, counts


def without_source(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "source"} for row in rows]


def test_an_archive_gives_the_same_clean_studies_as_a_folder(folder: Path, archive: Orthanc) -> None:
    rows, rejections, counts = prepared(list_source(open_store(str(folder)), "dicom"))
    got = prepared(list_dicomweb(section(archive)))
    assert len(rows) >= 5 and counts["read_in"] == len(contents(folder)) > 15
    assert without_source(got[0]) == without_source(rows)
    assert {row["source"] for row in got[0]} == {"dicomweb"}
    assert got[2] == counts
    assert Counter((one.step, one.reason) for one in got[1]) == Counter(
        (one.step, one.reason) for one in rejections
    )
    assert not UID.search(str(got[1]))


def test_a_listing_is_the_same_whatever_the_pages_and_changes_with_the_archive(
    folder: Path, tmp_path: Path
) -> None:
    server = Orthanc(tmp_path).start()
    try:
        stored = contents(folder)
        server.store([*stored[:-1], *others()])
        listings = [list_dicomweb(section(server, page_size=size)) for size in (1, 2, 3, 1000)]
        assert len({one.digest for one in listings}) == 1
        assert [len(one.files) for one in listings] == [len(stored) - 1] * 4
        assert sorted(file.read_bytes() for file in listings[0].files) == sorted(stored[:-1])
        server.store(stored[-1:])
        assert list_dicomweb(section(server)).digest != listings[0].digest
    finally:
        server.kill()


def test_filters_choose_the_studies(archive: Orthanc) -> None:
    dates = {
        file.header.study_uid: str(study["00080020"]["Value"][0])
        for study in archive.request(
            "GET", "/dicom-web/studies", headers={"Accept": "application/json"}
        ).json()
        for file in list_dicomweb(section(archive)).files
        if file.header and file.header.study_uid == study["0020000D"]["Value"][0]
    }
    late = {uid for uid, date in dates.items() if date >= "20160101"}
    assert 0 < len(late) < len(dates)
    found = list_dicomweb(section(archive, filters=LATE))
    assert {file.header.study_uid for file in found.files if file.header} == late
    with pytest.raises(InputDataError, match="no ultrasound study matches"):
        list_dicomweb(section(archive, filters={"00080020": 19000101}))


def test_who_is_not_let_in_is_told_so_and_no_secret(
    archive: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHORAY_TEST_ARCHIVE", f"{USER}:a wrong one")
    run = run_of(archive, tmp_path, auth_ref=AUTH)
    with pytest.raises(StorageError, match=r"refuses access \(401\)") as refused:
        prepare_studies(run, None, lambda *_: None)
    assert AUTH in refused.value.hint and "wrong" not in str(refused.value)
    with pytest.raises(StorageError, match="refuses access") as refused:
        list_dicomweb(section(archive, auth_ref=None))
    assert "auth_ref" in refused.value.hint
    with pytest.raises(InputDataError, match="no DICOMweb service"):
        monkeypatch.setenv("ECHORAY_TEST_ARCHIVE", f"{USER}:{PASSWORD}")
        list_dicomweb(section(archive, url=archive.address + "/elsewhere"))
    monkeypatch.setenv("ECHORAY_TEST_ARCHIVE", "s3cret")
    with pytest.raises(ConfigError, match="expected 'Bearer TOKEN'") as refused:
        list_dicomweb(section(archive))
    assert "s3cret" not in str(refused.value)


def test_instances_that_go_missing_are_quarantined_and_a_dead_server_is_an_error(
    folder: Path, tmp_path: Path
) -> None:
    server = Orthanc(tmp_path).start()
    try:
        server.store(contents(folder))
        whole = prepared(list_dicomweb(section(server)))
        listing = list_dicomweb(section(server))
        known = server.request("GET", "/instances").json()
        victims = [server.request("GET", f"/instances/{one}/simplified-tags").json() for one in known]
        lost = [one for one, tags in zip(known, victims, strict=True) if tags["Modality"] == "SR"][:2]

        def lose() -> None:
            server.request("DELETE", f"/instances/{lost[0]}")
            # And one that the archive believes to have: it answers 500.
            uuid = server.request("GET", f"/instances/{lost[1]}/attachments/dicom/info").json()["Uuid"]
            (tmp_path / uuid[:2] / uuid[2:4] / uuid).unlink()

        rows, rejections, counts = prepared(listing, lose)
        assert counts["read_in"] == whole[2]["read_in"]
        reasons = Counter(one.reason for one in rejections) - Counter(one.reason for one in whole[1])
        assert reasons["unreadable_file"] == 2
        assert len(whole[0]) - 2 <= len(rows) < len(whole[0])
        assert [row for row in whole[0] if row in rows] == rows
        with pytest.raises(StorageError, match="does not answer") as dead:
            prepared(listing, server.kill)
        assert not UID.search(str(dead.value)) and "can be reached" in dead.value.hint
        with pytest.raises(StorageError, match="does not answer"):
            list_dicomweb(section(server, retries=0))
    finally:
        server.kill()


class _Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the archive; where faulty, an address fails in one of four ways at first."""

    protocol_version = "HTTP/1.1"
    archive: httpx.Client
    faulty: bool
    asked: Counter[str]
    lock: threading.Lock

    def do_GET(self) -> None:
        with self.lock:
            fault = len(self.asked) % 4 if self.faulty and self.path not in self.asked else None
            self.asked[self.path] += 1
        if fault in (0, 1):
            self.send_response((429, 503)[fault])
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name: self.headers[name] for name in ("Accept", "Authorization")}
        answer = self.archive.get(self.path, headers=headers)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(answer.content)))
        if fault != 3:  # then the connection breaks before the header, and with 2 within the body
            self.end_headers()
            self.wfile.write(answer.content[: len(answer.content) // 2 if fault == 2 else None])
        self.close_connection = fault is not None

    def log_message(self, *_: Any) -> None:
        return None


@contextmanager
def proxy(
    server: Orthanc, *, faulty: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, Counter[str]]]:
    """The proxy's DICOMweb address, and how often it was asked for what."""
    client = httpx.Client(base_url=server.address)
    values = {"archive": client, "faulty": faulty, "asked": Counter(), "lock": threading.Lock()}
    front = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Proxy,), values))
    front.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused clients
    if tls is not None:
        front.socket = tls.wrap_socket(front.socket, server_side=True)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{front.server_port}/dicom-web", values["asked"]
    finally:
        front.shutdown()
        front.server_close()


def test_nothing_is_lost_to_refusals_and_broken_connections_and_no_log_names_a_study(
    archive: Orthanc, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list_dicomweb(section(archive))
    with proxy(archive, faulty=True) as (url, asked), caplog.at_level(logging.DEBUG):
        listing = list_dicomweb(section(archive, url=url, retries=3))
        assert listing.digest == expected.digest
        assert [one.read_bytes() for one in listing.files] == [one.read_bytes() for one in expected.files]
    assert min(asked.values()) > 1 and len(asked) > 40
    told = [one.getMessage() for one in caplog.records if one.name.startswith(("urllib3", "echoray"))]
    assert not [line for line in told if UID.search(line)]


def certificate(folder: Path, name: str) -> None:
    """A self-signed certificate for this machine: NAME.crt and NAME.key."""
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.crt"]
    subprocess.run(["openssl", "req", *options], cwd=folder, check=True, capture_output=True)


def test_tls_trusts_the_named_authority_only_and_shows_the_clients_certificate(
    archive: Orthanc, tmp_path: Path
) -> None:
    # Debian's Orthanc falls over OpenSSL 3 when it is to speak TLS itself: a proxy in front of it does.
    for name in ("server", "client"):
        certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "client.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    ca, own, key = (str(tmp_path / name) for name in ("server.crt", "client.crt", "client.key"))
    expected = list_dicomweb(section(archive)).digest
    with proxy(archive, tls=context) as (url, _):
        mine = {"url": url, "client_cert": own, "client_key": key}
        assert list_dicomweb(section(archive, ca_bundle=ca, **mine)).digest == expected
        assert list_dicomweb(section(archive, verify=False, **mine)).digest == expected
        for wrong in (mine, {"url": url, "ca_bundle": ca}):
            with pytest.raises(StorageError, match="no trusted TLS connection") as refused:
                list_dicomweb(section(archive, **wrong))
            assert "ca_bundle, client_cert" in refused.value.hint
        with pytest.raises(ConfigError, match=r"client_key: .* is no file"):
            list_dicomweb(section(archive, **{**mine, "client_key": key + ".gone"}))


def run_of(server: Orthanc, folder: Path, **values: Any) -> RunConfig:
    """A run with the archive as its only source; Ray may have started before a variable was set."""
    secret = folder / "secret"
    secret.write_text(f"{USER}:{PASSWORD}\n")
    archive = section(server, **{"auth_ref": f"file:{secret}", **values}).model_dump(mode="json")
    data = {**DATA, "source": {**DATA["source"], "dicomweb": [archive]}}
    changes = {"name": "archive", "seed": SEED, "workspace": str(folder / "workspace"), "data": data}
    return load_run("tiny").merged(changes)


def studies_of(run: RunConfig) -> set[str]:
    (archive,) = run.data.source.dicomweb
    return {file.header.study_uid for file in list_dicomweb(archive).files if file.header}


@pytest.mark.usefixtures("ray_local")
def test_workers_read_what_is_new_in_an_archive_and_a_copy_in_a_folder_counts_once(
    folder: Path, archive: Orthanc, tmp_path: Path
) -> None:
    expected = prepared(list_source(open_store(str(folder)), "dicom"))
    late = run_of(archive, tmp_path, filters=LATE)
    first = prepare_studies(late, None, lambda *_: None)
    run = run_of(archive, tmp_path)
    ref = prepare_studies(run, None, lambda *_: None)
    since = artifacts.require(store_of(run), ref, made_by="a test").counts["since"]
    assert since == {"studies": first.path, "taken_over": len(studies_of(late))}
    assert 0 < since["taken_over"] < len(studies_of(run))
    rows = rows_of(store_of(run), ref.path)
    assert without_source(rows) == without_source(expected[0])
    # How the archive is reached is no part of what the studies are.
    assert prepare_studies(run_of(archive, tmp_path, retries=9), None, lambda *_: None) == ref
    twice = run.merged({"data": {"source": {"dicom_uris": [str(folder)]}}})
    ref = prepare_studies(twice, None, lambda *_: None)
    assert without_source(rows_of(store_of(run), ref.path)) == without_source(rows)
    read = ledger_of(store_of(run), ref)["read"]
    assert read["records_in"] == 2 * expected[2]["read_in"]
    assert read["quarantined"]["duplicate_file"] >= expected[2]["read_in"]
    manifest = store_of(run).read_bytes(f"{ref.path}/manifest.json").decode()
    assert PASSWORD not in manifest


@pytest.mark.usefixtures("ray_local")
def test_an_archive_that_dies_under_the_workers_ends_the_command_with_what_to_do(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    server = Orthanc(tmp_path / "archive").start()
    try:
        server.store(contents(folder))

        def progress(step: str, done: int, total: int | None) -> None:
            if step == "indexed files" and done == total:
                server.kill()

        with pytest.raises(RayTaskError) as raised:
            prepare_studies(run_of(server, tmp_path, retries=0), None, progress)
        ending = ending_of(raised.value)
        assert ending is not None and ending.exit_code == StorageError.exit_code
        assert "does not answer" in ending.message and "can be reached" in ending.hint
        assert not UID.search(ending.message)
    finally:
        server.kill()
