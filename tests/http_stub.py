"""What the stand-ins for servers share: HTTP from a thread of this process, with a log of what was asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

Response = tuple[int, dict[str, str], str]  # status, headers, body


class HttpStub:
    """Use as a context manager. A subclass answers in `serve`, which threads call for each GET and POST.

    port: 0: one that is free. log: one dictionary per request, in the order of arrival; `serve` writes it, and counts
    what is in flight, under `lock`. closing: set at the end.
    """

    def __init__(self, port: int = 0):
        self.log: list[dict] = []
        self.in_flight = self.most_in_flight = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body go in two writes

            def do_GET(self):
                stub.serve(self)

            def do_POST(self):
                stub.serve(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *_):  # a client that went away
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError


def send_response(handler: BaseHTTPRequestHandler, response: Response, part: float = 1.0) -> None:
    """part: of the body; less than 1 ends the connection in the middle of it."""
    status, headers, body = response
    content = body.encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: int(len(content) * part)])
    if part < 1:
        handler.close_connection = True
