#!/usr/bin/env python3
"""Checks our webhooks with receivers that are not ours.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install standardwebhooks cryptography cloudevents
    /tmp/venv/bin/python scripts/foreign-receiver.py target/debug/context-injector
    /tmp/venv/bin/python scripts/foreign-receiver.py --serve whsec_…

Starts a receiver on loopback and sends it `endpoints test`: signatures of v1 are verified by the reference library
of Standard Webhooks, those of v1a by `cryptography`, the event is read by the CloudEvents SDK. While keys rotate,
receivers with the old and with the new key must both be content. Exit code 1 if anybody is not.

With --serve it prints its address and then a JSON object for each delivery: the event as the CloudEvents SDK reads
it, or the problem. It ends with its standard input. The tests have a worker's outcomes delivered to it by a relay.
"""

import base64
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

from cloudevents.core.bindings import http as cloudevents_http
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from standardwebhooks import Webhook

OLD = "whsec_" + base64.b64encode(os.urandom(32)).decode()
NEW = "whsec_" + base64.b64encode(os.urandom(24)).decode()
LONG = "whsec_" + base64.b64encode(os.urandom(64)).decode()
SEED = os.urandom(32)
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
SEED_KEY = "whsk_" + base64.b64encode(SEED).decode()
PAIR_KEY = "whsk_" + base64.b64encode(SEED + PUBLIC).decode()


def by_reference(secret):
    return lambda headers, body: Webhook(secret).verify(body, headers)


def by_ed25519(headers, body):
    content = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    for signature in headers["webhook-signature"].split(" "):
        version, encoded = signature.split(",", 1)
        if version == "v1a":
            Ed25519PublicKey.from_public_bytes(PUBLIC).verify(base64.b64decode(encoded), content)
            return
    raise ValueError("no signature of version v1a")


CASES = [
    ("v1", NEW, None, [by_reference(NEW)]),
    ("v1, 64 bytes", LONG, None, [by_reference(LONG)]),
    ("v1, rotating", NEW, OLD, [by_reference(NEW), by_reference(OLD)]),
    ("v1a, seed", SEED_KEY, None, [by_ed25519]),
    ("v1a, pair", PAIR_KEY, None, [by_ed25519]),
    ("v1 to v1a", PAIR_KEY, OLD, [by_ed25519, by_reference(OLD)]),
]


class Receiver(http.server.BaseHTTPRequestHandler):
    checks, problems, tell = [], [], None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            for check in Receiver.checks:
                check(headers, body)
            event = cloudevents_http.from_http_event(cloudevents_http.HTTPMessage(headers=headers, body=body))
            assert event.get_id() == headers["webhook-id"], "webhook-id is not the event's id"
            status, said = 204, {
                "id": event.get_id(), "type": event.get_type(), "source": event.get_source(),
                "subject": event.get_subject(), "time": event.get_time().isoformat(),
                "extensions": sorted(event.get_attributes().keys()), "data": event.get_data(),
            }
        except Exception as problem:
            Receiver.problems.append("%s: %s" % (type(problem).__name__, problem))
            status, said = 401, {"problem": Receiver.problems[-1]}
        if Receiver.tell:
            Receiver.tell(json.dumps(said, default=str))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


def serve(secret):
    Receiver.checks = [by_reference(secret)]
    Receiver.tell = lambda line: print(line, flush=True)
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("http://127.0.0.1:%d/" % server.server_port, flush=True)
    sys.stdin.read()
    return 0


def main(binary):
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    failed = False
    for name, secret, previous, checks in CASES:
        Receiver.checks, Receiver.problems = checks, []
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as settings:
            settings.write('[endpoints.test]\nurl = "http://127.0.0.1:%d/"\n' % server.server_port)
            settings.write('secret = "%s"\nallow_http = true\nallow_networks = ["127.0.0.1"]\n' % secret)
            settings.write('previous_secret = "%s"\n' % previous if previous else "")
            settings.flush()
            command = [binary, "--config", settings.name, "endpoints", "test", "test"]
            done = subprocess.run(command, capture_output=True, text=True)
        good = done.returncode == 0 and not Receiver.problems
        failed = failed or not good
        print("%-14s %s" % (name, "verified" if good else "FAILED: %s %s" % (Receiver.problems, done.stdout)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2]) if sys.argv[1] == "--serve" else main(sys.argv[1]))
