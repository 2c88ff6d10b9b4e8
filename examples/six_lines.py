"""A client without our library: plain pyzmq and JSON, six lines that matter.

    python examples/six_lines.py CREDENTIALS.json "Once upon a time"

Prints the answer as it comes. The protocol is in docs/protocol.md.
"""

import json
import sys

import zmq

key = json.load(open(sys.argv[1]))  # noqa: SIM115

sock = zmq.Context().socket(zmq.DEALER)
sock.curve_serverkey, sock.curve_publickey = key["serverPublicKey"].encode(), key["clientPublicKey"].encode()
sock.curve_secretkey = key["clientSecretKey"].encode()
sock.connect(key["endpoint"])
sock.send_multipart([b'{"op": "REQ", "rid": "1"}', json.dumps({"prompt": sys.argv[2], "max_tokens": 64}).encode()])
for header, body in iter(lambda: map(json.loads, sock.recv_multipart()), None):
    print(body.get("text", ""), end="", flush=True)
    if header["op"] in ("END", "ERR"):
        sys.exit(body.get("message"))  # none after END: exit code 0
