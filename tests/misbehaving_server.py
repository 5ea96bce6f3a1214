"""A local server of text, images, speech and music that answers as a plan says, well or badly."""

from __future__ import annotations

import base64
import contextlib
import email.message
import gzip
import http.server
import io
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from anygpt_jax.modalities.audio import save_wav
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.pictures import save_png

Behaviour = Callable[["Handler"], None]
PICTURE = save_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
SOUND = save_wav(Audio((np.sin(np.arange(4000) / 5) / 2).astype(np.float32), 16_000))
SILENCE = save_wav(Audio(np.zeros(4000, np.float32), 16_000))


def png_bomb() -> bytes:
    """A whole PNG file of 13,000 x 13,000 pixels of one bit, of few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(13_000 * 1626), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        media = [self.body[name] for name in ("input", "inputs", "prompt") if name in self.body]
        asked = media[0] if media else self.body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.bodies.append(self.body)
            self.server.headers.append(self.headers)
            self.server.paths.append(self.path)
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
            plan = self.server.plan.get(asked, [])
            behaviour = plan.pop(0) if plan else good
        try:
            behaviour(self)
        except OSError:
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.active -= 1

    def reply(self, data: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Type": kind, "Content_Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: dict[str, list[Behaviour]] = {}  # what is asked -> what happens, an attempt each; then all is good
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.headers: list[email.message.Message] = []
        self.paths: list[str] = []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.go_on = threading.Event()  # for those that hang

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def task(self) -> str:
        """The address of a model that makes audio of text, as Hugging Face's task is asked."""
        return f"http://127.0.0.1:{self.server_address[1]}/models/some/tunes"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that are killed, or give up, are meant


@contextlib.contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()


def chat(content: object, finish: str = "stop", refusal: object = None, usage: object = None) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    usage = {"prompt_tokens": 10, "completion_tokens": 5} if usage is None else usage
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()


def good(handler: Handler) -> None:
    if handler.path in ("/v1/audio/speech", "/v1/audio/generate", "/models/some/tunes"):
        handler.reply(SOUND, kind="audio/wav")
    elif handler.path.endswith("/images/generations"):
        handler.reply(image(PICTURE))
    else:
        handler.reply(chat(f"echo {handler.body['messages'][-1]['content']}"))


def image(data: bytes) -> bytes:
    return json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()


def says(data: bytes, kind: str = "application/json") -> Behaviour:
    return lambda handler: handler.reply(data, kind=kind)


def fails(status: int, message: str = "no", **headers: str) -> Behaviour:
    """An error; `retry_after_ms="1"` makes the client's wait short."""
    error = json.dumps({"error": {"message": message, "code": headers.pop("code", None)}}).encode()
    return lambda handler: handler.reply(error, status, **headers)


def says_with(status: int, body: dict) -> Behaviour:
    """An error in a form of its own: Hugging Face has `error` as a string, FastAPI has `detail`."""
    return lambda handler: handler.reply(json.dumps(body).encode(), status, retry_after_ms="1")


def hangs(handler: Handler) -> None:
    """Beyond any timeout."""
    handler.server.go_on.wait(60)


def drips(handler: Handler) -> None:
    """A byte now and then, so that no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.go_on.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def cuts_short(handler: Handler) -> None:
    """JSON whose end is missing, in a body that is whole."""
    handler.reply(chat("half of an answer")[:-20])


def drops(handler: Handler) -> None:
    """The connection, in the middle of a body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(chat("half")[:20])
    handler.close_connection = True


def floods(handler: Handler) -> None:
    """More than any answer has, without end."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    block = b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16))
    while not handler.server.go_on.is_set():
        handler.wfile.write(block)


def zips(handler: Handler) -> None:
    """A body that grows a thousandfold when it is unpacked."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        file.write(bytes(1 << 22))
    handler.reply(out.getvalue(), Content_Encoding="gzip")


def redirects(handler: Handler) -> None:
    handler.reply(b"", 302, Location="http://127.0.0.1:9/stolen")
