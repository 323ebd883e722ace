"""A stub of LanguageTool's HTTP API, as a remote server and as a `java` to start."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import psutil

from alarm.tasks.mt.grammar.server import LocalServer

# finds the word "wrong"; offsets in UTF-16 units, as LanguageTool's
ANSWER = """
def answer(text):
    units = text.encode("utf-16-le", "surrogatepass")
    at = units.find("wrong".encode("utf-16-le"))
    rule = {"id": "STUB", "category": {"id": "GRAMMAR"}, "issueType": "grammar"}
    found = [] if at < 0 else [{"offset": at // 2, "length": 5, "rule": rule, "message": "a wrong word"}]
    return {"software": {"version": "stub"}, "warnings": {"incompleteResults": False}, "matches": found}
"""
exec(ANSWER)


class QueueingServer(ThreadingHTTPServer):
    request_queue_size = 64  # the default of 5 drops connections that come together, for a second


class StubServer:
    """`plan`: what the coming requests get, in order, each once: "500", "429", "503", "nonsense", "html", "part", ...

    `retry_after`: the header of that name beside 429 and 503. `times`: when each request came, by time.monotonic().
    """

    def __init__(self):
        self.plan: list[str] = []
        self.always: str | None = None
        self.texts: list[str] = []
        self.times: list[float] = []
        self.retry_after: str | None = None
        self.most_at_once = 0
        self._open = 0
        lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                text = parse_qs(body, keep_blank_values=True)["text"][0]
                with lock:
                    stub._open += 1
                    stub.most_at_once = max(stub.most_at_once, stub._open)
                    stub.texts.append(text)
                    stub.times.append(time.monotonic())
                    what = stub.always or (stub.plan.pop(0) if stub.plan else "answer")
                if what == "hang":
                    time.sleep(1.0)
                time.sleep(0.01)
                status, content = {
                    "500": (500, "Error: internal"),
                    "429": (429, "Error: request limit of 20 requests per 60 seconds exceeded"),
                    "503": (503, "Error: overloaded"),
                    "html": (200, "<html>Welcome to the hotel's network</html>"),
                    "nonsense": (200, json.dumps({"matches": [{"offset": 99999, "length": 5}]})),
                    "part": (200, json.dumps({"warnings": {"incompleteResults": True}, "matches": []})),
                }.get(what, (200, json.dumps(answer(text))))  # noqa: F821
                with lock:
                    stub._open -= 1
                raw = content.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                if status in (429, 503) and stub.retry_after is not None:
                    self.send_header("Retry-After", stub.retry_after)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args):
                pass

        self._http = QueueingServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


FAKE_JAVA = (
    f"""#!{sys.executable} -S
import http.server, json, os, sys, urllib.parse
if "-version" in sys.argv:
    print('openjdk version "' + os.environ.get("FAKE_JAVA_VERSION", "17.0.1") + '"', file=sys.stderr)
    sys.exit()
if os.environ.get("FAKE_JAVA_DIES"):
    print("Exception in thread main: out of luck")
    sys.exit(3)
"""
    + ANSWER
    + """
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        text = urllib.parse.parse_qs(body)["text"][0]
        raw = json.dumps(answer(text)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.request_queue_size = 64
try:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler)
except OSError:
    print("java.net.BindException: Address already in use", flush=True)
    sys.exit(1)
print("Server started", flush=True)
server.serve_forever()
"""
)


def group_members(server: LocalServer) -> list:
    """The live processes of the server's group: the watcher, `cat`, Java."""
    return members(json.loads((server.folder / "server.json").read_text())["group"])


def members(group: int) -> list:
    """The live processes of a process group."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def java_of(server: LocalServer):
    """The Java process (or what stands for it)."""
    return next(p for p in group_members(server) if "--port" in p.cmdline() and p.name() != "sh")
