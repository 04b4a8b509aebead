#!/usr/bin/env python3
"""Compares measured values with benches/budgets.toml. Started by benches/budgets.sh.

    budgets.py MEASURED [--partial] [--accept]

MEASURED has a line of JSON for each value: those that benches/support/measurements.rs writes, and summaries of gungraun.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

FILE = Path(__file__).with_name("budgets.toml")
# Growth or shrinkage that is noise.
TOLERANCE = 0.05

HEADER = """\
# What a stream, a turn or a recall costs in units that no clock disturbs. `.ci/run` measures these values again and fails
# if one has grown by more than 5 %. If that is intended, write the new values and say why in the commit:
#
#     benches/budgets.sh --accept
#
# That replaces only values that have changed by more than 5 %, so that small steps add up. Instructions are those of the
# profile `ci` (opt-level 1) on x86_64; another compiler may change all of them, and --accept then replaces all.
"""

# Function and id of a benchmark in benches/budgets/benches/instructions.rs: the budget, how often the function does it, and
# what the budget measures.
INSTRUCTIONS = {
    ("frames", "direct"): ("frame-direct", 64, "from a delta of the model to the bytes of a frame, direct"),
    ("frames", "kept"): ("frame-kept", 64, "from a delta of the model to the bytes of a frame, kept"),
    ("admission", "direct"): ("admission-direct", 1, "from the bytes of a request to an open stream, direct"),
    ("admission", "kept"): ("admission-kept", 1, "from the bytes of a request to an open stream, kept, without a database"),
    ("provider_events", "openai"): ("provider-event", 100, "parsing one server-sent event of a provider"),
    ("tokenizing", "chinese"): ("1-kb-of-chinese", 1, "tokenizing 1 kB of Chinese for the index"),
    ("tokenizing", "english"): ("1-kb-of-english", 1, "tokenizing 1 kB of English for the index"),
}


def budget_of(line):
    """A line of MEASURED as a name and a budget."""
    row = json.loads(line)
    if "budget" in row:
        budget = {key: row[key] for key in ("value", "unit", "measures")}
        return row["budget"], {**budget, "value": int(row["value"]) if row["value"] == int(row["value"]) else row["value"]}
    name, times, measures = INSTRUCTIONS[row["function_name"], row.get("id")]
    counted = row["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"]
    return f"instructions-of-{name}", {"value": round(counted / times), "unit": "instructions", "measures": measures}


def measured(path):
    budgets = dict(budget_of(line) for line in path.read_text().splitlines() if line.strip())
    if not budgets:
        raise SystemExit(f"{path}: nothing was measured")
    return budgets


def change(old, new):
    return (new - old) / old if old else (float(new > 0))


def describe(name, old, new):
    unit, share = new["unit"], change(old["value"], new["value"])
    return f"  {name}: {old['value']:,} -> {new['value']:,} {unit} ({share:+.1%})\n      {new['measures']}"


def compare(budgets, found, is_partial):
    """Lines about what fails, and lines about what does not."""
    failures, notes = [], []
    common = [name for name in found if name in budgets]
    changes = {name: change(budgets[name]["value"], found[name]["value"]) for name in common}
    if grown := [name for name in common if changes[name] > TOLERANCE]:
        failures.append(f"grown by more than {TOLERANCE:.0%}:")
        failures += [describe(name, budgets[name], found[name]) for name in grown]
    if added := [name for name in found if name not in budgets]:
        failures.append("measured, but without a budget:")
        failures += [f"  {name}: {found[name]['value']:,} {found[name]['unit']}" for name in added]
    absent = [name for name in budgets if name not in found]
    if absent and not is_partial:
        failures.append("no longer measured:")
        failures += [f"  {name}" for name in absent]
    if fallen := [name for name in common if changes[name] < -TOLERANCE]:
        notes.append(f"fallen by more than {TOLERANCE:.0%}; accept the new values, so that they stay:")
        notes += [describe(name, budgets[name], found[name]) for name in fallen]
    return failures, notes


def accepted(budgets, found, is_partial, is_same_compiler):
    """The budgets to write. Values within the tolerance stay, unless all were measured by another compiler."""
    kept = {name: old for name, old in budgets.items() if name in found or is_partial}
    for name, new in found.items():
        old = kept.get(name)
        stays = old and is_same_compiler and abs(change(old["value"], new["value"])) <= TOLERANCE
        kept[name] = {**new, "value": old["value"]} if stays else new
    return kept


def written(budgets, compiler):
    sections = [HEADER, f"rustc = {json.dumps(compiler)}\n"]
    for name in sorted(budgets):
        budget = budgets[name]
        sections.append(
            f"[{name}]\nvalue = {budget['value']}\nunit = {json.dumps(budget['unit'])}\n"
            f"measures = {json.dumps(budget['measures'], ensure_ascii=False)}\n"
        )
    return "\n".join(sections)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("--partial", action="store_true", help="not all was measured")
    parser.add_argument("--accept", action="store_true", help="write the measured values into the file")
    options = parser.parse_args()

    found = measured(options.measured)
    budgets = tomllib.loads(FILE.read_text()) if FILE.exists() else {}
    old_compiler = budgets.pop("rustc", "")
    compiler = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    failures, notes = compare(budgets, found, options.partial)
    for name in sorted(found):
        budget, old = found[name], budgets.get(name)
        share = f" {change(old['value'], budget['value']):+.1%}" if old else ""
        print(f"{name:<44}{budget['value']:>12,} {budget['unit']:<14}{share}")
    if options.accept:
        is_same_compiler = compiler == old_compiler
        # A part alone would record another compiler for values that it did not count.
        if not is_same_compiler and old_compiler and options.partial:
            raise SystemExit(f"{FILE.name} is of rustc {old_compiler}, this is {compiler}: accept all parts together")
        FILE.write_text(written(accepted(budgets, found, options.partial, is_same_compiler), compiler))
        print(f"\nwritten: {FILE}")
        return 0
    for line in notes:
        print(line)
    if not failures:
        print(f"\nwithin {TOLERANCE:.0%} of {FILE.name}")
        return 0
    print(f"\nerror: measured values differ from {FILE}", *failures, sep="\n", file=sys.stderr)
    if old_compiler not in ("", compiler):
        print(
            f"The file is of rustc {old_compiler}, this is rustc {compiler}: that alone changes instructions and sizes. "
            "Accept the values of the commit before yours first.",
            file=sys.stderr,
        )
    print("If this is intended, write the new values and say why in the commit:\n\n    benches/budgets.sh --accept\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
