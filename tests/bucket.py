"""A bucket on this machine: the two ways that Orbax reaches gs:// lead to one local folder.

TensorStore's own Cloud Storage driver talks HTTP to a small server of the service's JSON API; epath, through fsspec, sees
the same folder as gs://. Two things are not the service's: whether a bucket has folders is not asked (that takes
google-cloud-storage), and fsspec's file system is one of local files instead of gcsfs.
"""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import threading
import urllib.parse
from typing import Any

NAME = "bucket"


def requests_of(root: pathlib.Path) -> type[http.server.BaseHTTPRequestHandler]:
    """A handler of objects in root/bucket: upload, read (by ranges), describe, list, delete."""
    bucket = root / NAME

    class Requests(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def described(self, path: pathlib.Path) -> dict[str, str]:
            stat = path.stat()
            return {
                "kind": "storage#object", "bucket": NAME, "name": path.relative_to(bucket).as_posix(),
                "generation": str(stat.st_mtime_ns), "metageneration": "1", "size": str(stat.st_size),
                "updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z",
            }  # fmt: skip

        def do_POST(self) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = bucket / query["name"]
            if query.get("ifGenerationMatch") == "0" and path.exists():
                return self.answer(412)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.answer(200, self.described(path))

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            if "/o/" not in url.path:
                names = [p for p in sorted(bucket.rglob("*")) if p.is_file()]
                found = [self.described(p) for p in names]
                return self.answer(
                    200, {"items": [one for one in found if one["name"].startswith(query.get("prefix", ""))]}
                )
            path = bucket / urllib.parse.unquote(url.path.split("/o/", 1)[1])
            if not path.is_file():
                return self.answer(404)
            if query.get("alt") != "media":
                return self.answer(200, self.described(path))
            content, headers, status = path.read_bytes(), {"x-goog-generation": str(path.stat().st_mtime_ns)}, 200
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                start = int(first) if first else max(0, len(content) - int(last))
                stop = int(last) + 1 if first and last else len(content)
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
                content, status = content[start:stop], 206
            self.answer(status, content, headers)

        def do_DELETE(self) -> None:
            name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.split("/o/", 1)[1])
            (bucket / name).unlink(missing_ok=True)
            self.answer(204)

    return Requests


def install(root: pathlib.Path) -> list[str]:
    """gs://bucket/ is root/bucket from now on in this process. Returns the list that TensorStore's requests go to."""
    os.environ["EPATH_USE_TF"] = "0"  # before etils is imported
    (root / NAME).mkdir(parents=True)
    seen: list[str] = []

    class Noted(requests_of(root)):  # type: ignore[misc]
        def handle_one_request(self) -> None:
            super().handle_one_request()
            seen.append(getattr(self, "requestline", ""))

    server = http.server.ThreadingHTTPServer(("localhost", 0), Noted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://localhost:{server.server_port}"
    os.environ["GCE_METADATA_ROOT"] = "localhost:1"  # no credentials
    os.environ["no_proxy"] = "localhost"

    import fsspec
    from fsspec.implementations.local import LocalFileSystem
    from orbax.checkpoint._src.path import gcs_utils

    class Folder(LocalFileSystem):
        protocol = ("gcs", "gs")

        def __init__(self, *args: Any, finalize_on_close: bool | None = None, **rest: Any):
            super().__init__(*args, auto_mkdir=True, **rest)

        def glob(self, path: str, **rest: Any) -> list[str]:
            return [found.removeprefix(f"{root}/") for found in super().glob(path, **rest)]

        @classmethod
        def _strip_protocol(cls, path: Any) -> str:
            path = os.fspath(path)
            return (f"{root}/{path.removeprefix('gs://')}" if path.startswith("gs://") else path).rstrip("/")

    fsspec.register_implementation("gcs", Folder, clobber=True)
    gcs_utils.get_bucket = lambda name: object()
    return seen
