"""A DICOMweb archive: its studies are listed with QIDO-RS and read with WADO-RS (DICOM PS3.18).

No error and no log line names a study: addresses below the service hold UIDs.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from echoray.config import digest, secret
from echoray.config.data import DicomwebConfig
from echoray.data.sources.index import DICOMWEB, ULTRASOUND, Header, Listing, SourceFile
from echoray.errors import ConfigError, EchoRayError, InputDataError, StorageError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_ACCESS = {"auth_ref", "verify", "ca_bundle", "client_cert", "client_key", "timeout_s", "retries"}
# Settings that are no part of what the studies are: the listing says what the filters choose.
NOT_IN_PLANS = _ACCESS | {"page_size", "filters"}
_MODALITIES = (ULTRASOUND, "SR")
_STUDY_UID, _SERIES_UID, _INSTANCE_UID = "0020000D", "0020000E", "00080018"
_NUM_SERIES, _NUM_INSTANCES, _MODALITY, _NUM_FRAMES = "00201206", "00201209", "00080060", "00280008"
_JSON = "application/dicom+json"
# As stored: a server that converted pixels, or chose to compress them, would change the study.
_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_CONNECTIONS = 4  # of one process
_CONNECT_S = 10.0
_BACKOFF_S = 0.5  # doubled from the second retry on
_RETRIED = (429, 500, 502, 503, 504)

Item = dict[str, Any]  # one result in the DICOM JSON model (PS3.18 annex F)


class _NotHandedOutError(FileNotFoundError):
    """The server answers, but not with this instance."""


@dataclass(frozen=True)
class DicomwebStore:
    """The service at ``root``; paths are those of WADO-RS: studies/UID/series/UID/instances/UID.

    Picklable and without secrets: each process reads ``auth_ref`` itself, at each request, so that the token
    in a file may be renewed while studies are read.
    """

    root: str
    auth_ref: str | None = None
    verify: bool = True
    ca_bundle: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    timeout_s: float = 60
    retries: int = 5

    @property
    def scheme(self) -> str:
        """Always "dicomweb"."""
        return DICOMWEB

    def read_bytes(self, path: str, end: int | None = None) -> bytes:
        """One instance as the archive stores it (its first ``end`` bytes; all of it is transferred).

        Raises StorageError, from a FileNotFoundError where the server answers but does not hand out this one.
        """
        try:
            return self._instance(path)[:end]
        except _NotHandedOutError:
            raise StorageError(
                f"{self.root} does not hand out an instance", hint="ask the archive for it"
            ) from None

    def _instance(self, path: str) -> bytes:
        for _ in range(2):  # the second time for a server that came back between the two requests
            try:
                response = self._get(path, _STORED)
            except StorageError:
                response = None
            if response is not None and response.status == 200:
                content = _only_part(response)
                if content is not None:
                    return content
            # This instance's fault or the whole server's? The latter is raised here.
            self.query("studies", {"limit": "1"})
        raise _NotHandedOutError

    def search(
        self, path: str, uid_tag: str, matches: Mapping[str, str], page_size: int, expected: int | None = None
    ) -> dict[str, Item]:
        """All results of a QIDO-RS search by UID; ``expected`` of them, where the level above counts them.

        A server may give fewer results than it is asked for, so only a page without news is the end. And one
        may lose its place: Orthanc 1.10 has nothing at any offset when a match is not in its index. So if the
        last page was full, all is asked for once more from the start, ever more as long as there is more.
        """
        found: dict[str, Item] = {}
        limit, offset, full, growing = page_size, 0, False, False
        while expected is None or len(found) < expected:
            page = self.query(path, {**matches, "limit": str(limit), "offset": str(offset)})
            uids = [str(_value(item, uid_tag) or "") for item in page]
            if not all(uids):
                raise InputDataError(f"{self.root}: results without a UID", hint="check the service")
            new = {uid: item for uid, item in zip(uids, page, strict=True) if uid not in found}
            found |= new
            if new and not growing:
                offset, full = offset + len(page), len(page) >= limit
            elif new or (full and not growing):
                limit, offset, growing = 2 * len(found), 0, True
            else:
                break
        return found

    def query(self, path: str, parameters: Mapping[str, str]) -> list[Item]:
        """One page of a QIDO-RS search; nothing where what ``path`` names is gone."""
        response = self._get(f"{path}?{urlencode(parameters)}", _JSON)
        if response.status == 204 or (response.status == 404 and path != "studies"):
            return []
        if response.status != 200:
            raise self._refusal(response.status)
        try:
            found = json.loads(response.data)
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise InputDataError(
                f"{self.root}: the answer is not DICOM JSON", hint="check the url of data.source.dicomweb"
            )
        return found

    def _refusal(self, status: int) -> EchoRayError:
        if status in (401, 403):
            hint = f"check {self.auth_ref}" if self.auth_ref else "set auth_ref of data.source.dicomweb"
            return StorageError(f"{self.root} refuses access ({status})", hint=hint)
        if status in (404, 405):
            return InputDataError(
                f"{self.root}: no DICOMweb service here ({status})",
                hint="check the url of data.source.dicomweb: URL/studies must answer",
            )
        if status < 500 and status != 429:
            return InputDataError(
                f"{self.root} refuses the search ({status})", hint="check the filters of data.source.dicomweb"
            )
        return StorageError(f"{self.root} fails ({status})", hint="run the command again when it is well")

    def _get(self, path: str, accept: str) -> BaseHTTPResponse:
        """The answer to a GET after all retries; StorageError where there is none."""
        from urllib3.exceptions import HTTPError, SSLError

        headers = {"Accept": accept}
        if self.auth_ref is not None:
            headers["Authorization"] = _authorization(self.auth_ref)
        try:
            return _connections(self).request("GET", f"{self.root}/{path}", headers=headers)
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
        if isinstance(reason, SSLError):
            raise StorageError(
                f"{self.root}: no trusted TLS connection",
                hint="check ca_bundle, client_cert and client_key of data.source.dicomweb",
            )
        raise StorageError(
            f"{self.root} does not answer ({type(reason).__name__})",
            hint="check that it runs and can be reached from here, then run the command again",
        )


def list_dicomweb(config: DicomwebConfig, number: int = 0) -> Listing:
    """List the ultrasound images and structured reports of the studies that match the filters.

    The digest is of the UIDs and, where the server says them, the numbers of frames.
    """
    store = DicomwebStore(config.url, **{name: getattr(config, name) for name in _ACCESS})
    matches = {"ModalitiesInStudy": ULTRASOUND, **config.filters}
    studies = store.search("studies", _STUDY_UID, matches, config.page_size)
    threads = ThreadPoolExecutor(_CONNECTIONS)
    try:
        listed = threads.map(lambda one: _listed(store, one, studies[one], config.page_size), studies)
        found = {path: entry for entries in listed for path, entry in entries.items()}
    finally:
        threads.shutdown(cancel_futures=True)  # after an error the other studies would wait for retries
    if not found:
        raise InputDataError(
            f"{store.root}: no ultrasound study matches", hint="check the filters of data.source.dicomweb"
        )
    paths = sorted(found)
    files = tuple(
        SourceFile(store, path, DICOMWEB, number, size=frames or 0, header=header)
        for path in paths
        for header, frames in [found[path]]
    )
    return Listing(files, digest([(path, found[path][1]) for path in paths]))


def _listed(
    store: DicomwebStore, study_uid: str, study: Item, page_size: int
) -> dict[str, tuple[Header, int | None]]:
    """Header and number of frames, by path, of what a study holds for us."""
    found = {}
    study_path = f"studies/{quote(study_uid, safe='')}/series"
    series = store.search(study_path, _SERIES_UID, {}, page_size, _count(study, _NUM_SERIES))
    for series_uid, one in series.items():
        modality = _value(one, _MODALITY)
        if modality not in _MODALITIES:
            continue
        path = f"{study_path}/{quote(series_uid, safe='')}/instances"
        instances = store.search(path, _INSTANCE_UID, {}, page_size, _count(one, _NUM_INSTANCES))
        header = Header(study_uid, modality == ULTRASOUND)
        for uid, instance in instances.items():
            found[f"{path}/{quote(uid, safe='')}"] = header, _count(instance, _NUM_FRAMES)
    return found


def _value(item: Item, tag: str) -> Any:
    """The first value of an attribute, or None."""
    values = (item.get(tag) or {}).get("Value")
    return values[0] if values else None


def _count(item: Item, tag: str) -> int | None:
    value = _value(item, tag)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _only_part(response: BaseHTTPResponse) -> bytes | None:
    """The one part of a multipart/related answer, or the answer itself; None where it is cut short."""
    kind = Message()
    kind["Content-Type"] = response.headers.get("Content-Type", "")
    body = response.data
    if kind.get_content_maintype() != "multipart":
        return body
    delimiter = b"--" + (kind.get_boundary() or "").encode("latin-1", "replace")
    opened = body.find(delimiter)
    start = body.find(b"\r\n\r\n", opened) + 4
    end = body.find(b"\r\n" + delimiter, start)
    return body[start:end] if opened >= 0 and start >= 4 and end >= 0 else None


def _authorization(reference: str) -> str:
    """The Authorization header that the secret says: itself, or basic authentication of user:password."""
    value = secret(reference)
    if value.partition(" ")[0].lower() in ("bearer", "basic"):
        if value.isascii() and value.isprintable():
            return value
    elif ":" in value:
        return "Basic " + base64.b64encode(value.encode()).decode()
    raise ConfigError(
        f"{reference}: no credentials, expected 'Bearer TOKEN', 'Basic BASE64' or user:password",
        hint="write one of the three there",
    )


@lru_cache(maxsize=16)
def _connections(store: DicomwebStore) -> PoolManager:
    """This process's connections; requests are repeated after 429, 5xx and lost connections, ever later."""
    import urllib3

    for name in ("ca_bundle", "client_cert", "client_key"):
        path = getattr(store, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(
                f"data.source.dicomweb {name}: {path} is no file here", hint="it must be on every node"
            )
    for source in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(source).addFilter(_names_no_study)
    if not store.verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # one for each request
    return urllib3.PoolManager(
        maxsize=_CONNECTIONS,
        cert_reqs="CERT_REQUIRED" if store.verify else "CERT_NONE",
        ca_certs=store.ca_bundle,
        cert_file=store.client_cert,
        key_file=store.client_key,
        timeout=urllib3.Timeout(connect=min(_CONNECT_S, store.timeout_s), read=store.timeout_s),
        retries=urllib3.Retry(
            store.retries,
            other=min(1, store.retries),  # TLS that is not trusted will not be in a second either
            status_forcelist=_RETRIED,
            backoff_factor=_BACKOFF_S,
            backoff_max=30,
            backoff_jitter=0.1,
            retry_after_max=60,
            raise_on_status=False,
        ),
    )


def _names_no_study(record: logging.LogRecord) -> bool:
    return "/studies" not in record.getMessage()
