"""A real Orthanc with its DICOMweb plugin, as ``make orthanc`` unpacks it: a plain process in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.integration.conftest import free_port, wait_for

PLACE = Path(sys.prefix) / "orthanc"
USER, PASSWORD = "reader", "only for tests"


@dataclass
class Orthanc:
    """A server on a port of its own with ``folder`` as its storage."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.address}/dicom-web"

    def start(self) -> Orthanc:
        root = PLACE / "root/usr"
        configuration = {
            "StorageDirectory": str(self.folder),
            "IndexDirectory": str(self.folder),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "MaximumStorageCacheSize": 0,  # a file that is gone is gone
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(next(root.glob("lib/orthanc/libOrthancDicomWeb.so*")))],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, root.glob("lib/*-linux-gnu*")))}
        environment["DCMDICTPATH"] = str(next(root.glob("share/libdcmtk*/dicom.dic")))
        self.process = subprocess.Popen(
            [str(root / "sbin/Orthanc"), "orthanc.json"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("wb"),
        )
        wait_for(self.port, self.process)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def request(self, method: str, path: str, **values: Any) -> httpx.Response:
        """Ask its own REST interface as the user."""
        answer = httpx.request(method, self.address + path, auth=(USER, PASSWORD), timeout=60, **values)
        return answer.raise_for_status()

    def store(self, contents: Iterable[bytes]) -> None:
        """Store instances with STOW-RS."""
        parts = b"".join(
            b"--part\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in contents
        )
        kind = 'multipart/related; type="application/dicom"; boundary=part'
        answer = self.request(
            "POST",
            "/dicom-web/studies",
            content=parts + b"--part--",
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
        )
        assert not answer.json().get("00081198", {}).get("Value"), "instances were refused"
