"""The HTTP server under the stubs of services."""

from http.server import ThreadingHTTPServer


class StubServer(ThreadingHTTPServer):
    """On a port of its own. The queue has room for all connections of a test at once: where it is
    full, some systems reset the connection."""

    daemon_threads = True
    request_queue_size = 128
