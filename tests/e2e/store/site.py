"""An https server for files of a folder, and for the same files with faults.

``python site.py FOLDER CERTIFICATE KEY PORT``. ``/FILE`` is a file. Under ``/forbidden/`` each answer is 403. ``/cut-N/FILE``
closes after N % of the file, and ``/slow/FILE`` sends a byte a second.
"""

import functools
import http.server
import ssl
import sys
import time
from pathlib import Path

folder, certificate, key, port = sys.argv[1:]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers GET as the first part of the path says."""

    def do_GET(self) -> None:
        fault, _, name = self.path[1:].partition("/")
        if fault == "forbidden":
            self.send_error(403)
        elif fault == "slow" or fault.startswith("cut-"):
            self._send_badly((Path(folder) / name).read_bytes(), fault)
        else:
            super().do_GET()

    def _send_badly(self, content: bytes, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "slow":
            for each in content:
                self.wfile.write(bytes((each,)))
                time.sleep(1)
        else:
            self.wfile.write(content[: len(content) * int(fault.removeprefix("cut-")) // 100])
        self.close_connection = True


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer(("", int(port)), functools.partial(Handler, directory=folder))
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
