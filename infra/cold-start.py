#!/usr/bin/env python3
"""Measures cold starts of the Lambda functions: time, CPU time and peak memory until the first request for an event, and the zip size.

    cargo build --release --package stream-chat --package retrieve-memory --package manage-memory
    infra/cold-start.py target/release/{stream-chat,retrieve-memory,manage-memory}

Each program runs against an emulated Runtime API with the runtime's variables only: in demo mode, without any connection.
`--env NAME=VALUE` adds variables, for example a DATABASE_URL.
"""
import argparse, os, pathlib, socket, statistics, subprocess, tempfile, time, zipfile


def start(program: str, variables: dict[str, str]) -> tuple[float, float, int]:
    """Returns milliseconds from process start to the first request for an event, those on a CPU, and peak memory in KiB."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        runtime = {
            "AWS_LAMBDA_RUNTIME_API": f"{host}:{port}", "AWS_LAMBDA_FUNCTION_NAME": "function",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256", "AWS_LAMBDA_FUNCTION_VERSION": "1", "LOG_FORMAT": "json",
        }
        server.settimeout(30)
        started = time.perf_counter()
        process = subprocess.Popen([program], env=runtime | variables)
        try:
            connection, _ = server.accept()
            request = connection.recv(4096)
            milliseconds = (time.perf_counter() - started) * 1000
            assert request.startswith(b"GET /2018-06-01/runtime/invocation/next "), request
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            return milliseconds, cpu_milliseconds(process.pid), int(peak.split()[1])
        finally:
            process.kill()
            process.wait()


def cpu_milliseconds(pid: int) -> float:
    """Does not count the time that a thread waits for a CPU, and so hardly depends on what else runs."""
    threads = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6


def zip_size(program: str) -> int:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(program, "bootstrap")
        return file.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    variables = dict(pair.split("=", 1) for pair in options.env)
    print("| function | start to first `next`, median | p95 | CPU, median | peak memory | program | zip |\n|---|---|---|---|---|---|---|")
    for program in options.programs:
        start(program, variables)  # warms the page cache
        times, cpu_times, peaks = zip(*(start(program, variables) for _ in range(options.starts)))
        p95 = statistics.quantiles(times, n=20)[-1]
        print(f"| `{os.path.basename(program)}` | {statistics.median(times):.1f} ms | {p95:.1f} ms | {statistics.median(cpu_times):.1f} ms | {max(peaks) / 1024:.1f} MB"
              f" | {os.path.getsize(program) / 1e6:.1f} MB | {zip_size(program) / 1e6:.2f} MB |")


main()
