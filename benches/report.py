#!/usr/bin/env python3
"""Writes measured tables into docs/explanation/measurements.md. Started by benches/report.sh.

    report.py MEASURED [PAGE]

MEASURED has a line of JSON for each row, as benches/support/table.rs writes them. The page has a place for each table:

    <!-- measured: streams/frames -->
    <!-- end -->

A table that was not measured this time keeps its figures, with their date and commit.
"""

import json
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/explanation/measurements.md"
PLACE = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(path):
    """The rows of each table, in the order in which they were measured."""
    found = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "table" in row:
            found.setdefault(row["table"], []).append(row)
    if not found:
        raise SystemExit(f"{path}: nothing was measured")
    return found


def git(*arguments):
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def machine():
    """For example `AMD EPYC 7763, 2 cores, 8 GB, Debian GNU/Linux 12 (bookworm)`."""
    read = lambda path, pattern: re.search(pattern, Path(path).read_text(), re.MULTILINE).group(1)
    processor = read("/proc/cpuinfo", r"^model name\s*: (.*)$")
    cores = len(re.findall(r"^processor\s*:", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    memory = round(int(read("/proc/meminfo", r"^MemTotal:\s*(\d+) kB")) / 1e6)
    system = read("/etc/os-release", r'^PRETTY_NAME="(.*)"$')
    return f"{processor}, {cores} cores, {memory} GB, {system}"


def commit():
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return f"`{git('rev-parse', '--short', 'HEAD')}`" + (" with changes" if changed else "")


def block(rows, origin):
    """The Markdown of a table. Its id begins with the benchmark and the part that measure it."""
    first = rows[0]
    benchmark, part = first["table"].split("/")[:2]
    lines = [origin, "", "```sh", f"cargo bench --bench {benchmark} -- {part}", "```", "", first["caption"], ""]
    lines += [f"| {' | '.join(first['columns'])} |", "|" + "---|" * len(first["columns"])]
    lines += [f"| {' | '.join(row['row'])} |" for row in rows]
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    found = tables(Path(sys.argv[1]))
    page = Path(sys.argv[2]) if len(sys.argv) == 3 else PAGE
    text = page.read_text()
    places = [match[2] for match in PLACE.finditer(text)]
    if repeated := sorted({place for place in places if places.count(place) > 1}):
        raise SystemExit(f"{page} has two places for {', '.join(repeated)}")
    places = set(places)
    if missing := sorted(set(found) - places):
        raise SystemExit(f"{page} has no place for {', '.join(missing)}: add <!-- measured: {missing[0]} --> and <!-- end -->")
    origin = f"{datetime.now(timezone.utc):%Y-%m-%d}, {commit()}, {machine()}."

    def replace(match):
        rows = found.get(match[2])
        return f"{match[1]}\n{block(rows, origin)}\n{match[3]}" if rows else match[0]

    page.write_text(PLACE.sub(replace, text))
    print(f"{page}: wrote {', '.join(found)}")
    if kept := sorted(places - set(found)):
        print(f"not measured, so their figures stay: {', '.join(kept)}")


if __name__ == "__main__":
    main()
