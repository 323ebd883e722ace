"""Serve one page on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ...common.errors import UserError

HOST = "127.0.0.1"


def make_server(page: Callable[[], str], port: int = 0) -> ThreadingHTTPServer:
    """A server of `page()`, made anew for each request of "/". port: 0 takes a free one.

    Only requests to this machine by name are answered, so that no web page can read it through a name of its own.
    Raises UserError if the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                return self.answer(403, "this page is served to this machine alone\n", "text/plain")
            if self.path.split("?")[0] != "/":
                return self.answer(404, "there is one page, at /\n", "text/plain")
            try:
                self.answer(200, page(), "text/html")
            except UserError as error:
                self.answer(500, f"{error}\n", "text/plain")

        def answer(self, status: int, text: str, kind: str) -> None:
            content = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    class Server(ThreadingHTTPServer):
        allow_reuse_address = False  # a port that another process listens on is an error
        daemon_threads = True

    try:
        return Server((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"--port {port} cannot be used ({error.strerror}); give another one") from None
