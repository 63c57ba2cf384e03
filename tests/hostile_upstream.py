"""An upstream that answers with whatever bytes a test wants, and keeps those it was sent."""

from __future__ import annotations

import contextlib
import socketserver
import threading

__all__ = ["HostileUpstream", "hostile_upstream"]


class HostileUpstream:
    """Its address, what it answers next, and the heads of the requests it got."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.answer = b""
        self.heads = []


@contextlib.contextmanager
def hostile_upstream():
    """One that listens while the block runs."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = b""
            while line := self.rfile.readline(65_536):
                head += line
                if line == b"\r\n":
                    break
            lengths = [row for row in head.lower().split(b"\r\n") if row.startswith(b"content-length:")]
            self.rfile.read(int(lengths[0].partition(b":")[2]) if lengths else 0)
            upstream.heads.append(head)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(upstream.answer)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        upstream = HostileUpstream(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield upstream
        finally:
            server.shutdown()
            thread.join()
