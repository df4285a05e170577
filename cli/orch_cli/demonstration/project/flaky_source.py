"""A source of data as one meets them: it drops the connection in the middle of the first download, and works after that."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread
from typing import Any


class FlakySource:
    """Serves the airports of the world over HTTP on this machine while the block lasts, with one failure."""

    def __init__(self) -> None:
        # 28,000 rows that ship inside the package airportsdata (MIT licence).
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler((files("airportsdata") / "airports.csv").read_bytes()))
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}/airports.csv"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(content: bytes) -> Callable[..., BaseHTTPRequestHandler]:
    failures = iter([True])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = content[: len(content) // 2] if next(failures, False) else content
            self.send_response(200)
            self.send_header("Content-Type", "text/csv")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing: the flow's log is not the place for a server's."""

    return Handler
