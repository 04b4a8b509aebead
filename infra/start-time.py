#!/usr/bin/env python3
"""Measures the time from server start to SERVING, for the first start of a data directory and for later ones.

    cargo build && infra/start-time.py target/debug/agent-local

Needs the health client that tests/e2e/run.sh installs: target/e2e/venv/bin/python infra/start-time.py …
With DATABASE_URL, measures starts against that Postgres.
"""
import os, re, subprocess, sys, tempfile, time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def start(binary: str, data: str) -> float:
    started = time.perf_counter()
    server = subprocess.Popen([binary], env=os.environ | {"GRPC_PORT": "0", "AGENT_DATA_DIR": data, "DEMO_MODE": "true"},
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = next(m[1] for line in server.stdout if (m := re.search(r"http://(127\.0\.0\.1:\d+)", line)))
        with grpc.insecure_channel(address) as channel:
            for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return (time.perf_counter() - started) * 1000
        raise SystemExit("error: the server exited before it reported SERVING")
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        times = [start(sys.argv[1], data) for _ in range(6)]
    print(f"first start {times[0]:.0f} ms; later starts, median of 5: {sorted(times[1:])[2]:.0f} ms")


main()
