"""Tests of budgets.py: python3 -m unittest discover --start-directory benches"""

import json
import tempfile
import tomllib
import unittest
from pathlib import Path

import budgets


def budget(value, unit="bytes"):
    return {"value": value, "unit": unit, "measures": "what it is"}


class Compare(unittest.TestCase):
    def failures(self, old, new, is_partial=False):
        return "\n".join(budgets.compare(old, new, is_partial)[0])

    def test_growth_within_tolerance_passes(self):
        self.assertEqual(budgets.compare({"a": budget(1000)}, {"a": budget(1050)}, False), ([], []))

    def test_growth_beyond_tolerance_fails_with_both_values(self):
        text = self.failures({"a": budget(1000), "b": budget(7)}, {"a": budget(1051), "b": budget(7)})
        self.assertIn("a: 1,000 -> 1,051 bytes (+5.1%)", text)
        self.assertIn("what it is", text)
        self.assertNotIn("b:", text)

    def test_one_more_of_a_small_count_fails(self):
        self.assertIn("a: 7 -> 8", self.failures({"a": budget(7)}, {"a": budget(8)}))
        self.assertIn("a: 0 -> 1", self.failures({"a": budget(0)}, {"a": budget(1)}))

    def test_fall_is_noted_and_does_not_fail(self):
        failures, notes = budgets.compare({"a": budget(1000)}, {"a": budget(900)}, False)
        self.assertEqual(failures, [])
        self.assertIn("a: 1,000 -> 900 bytes (-10.0%)", "\n".join(notes))

    def test_value_without_budget_fails(self):
        self.assertIn("without a budget", self.failures({}, {"a": budget(1)}))

    def test_budget_without_value_fails_unless_only_a_part_was_measured(self):
        old = {"a": budget(1), "b": budget(1)}
        self.assertIn("no longer measured:\n  b", self.failures(old, {"a": budget(1)}))
        self.assertEqual(self.failures(old, {"a": budget(1)}, is_partial=True), "")


class Accept(unittest.TestCase):
    def test_values_within_tolerance_stay(self):
        old = {"a": budget(1000), "b": budget(1000)}
        new = budgets.accepted(old, {"a": budget(1040), "b": budget(1060)}, False, True)
        self.assertEqual((new["a"]["value"], new["b"]["value"]), (1000, 1060))

    def test_values_of_another_compiler_replace_all(self):
        new = budgets.accepted({"a": budget(1000)}, {"a": budget(1001)}, False, False)
        self.assertEqual(new["a"]["value"], 1001)

    def test_only_a_whole_measurement_removes_budgets(self):
        old = {"a": budget(1), "b": budget(1)}
        self.assertEqual(set(budgets.accepted(old, {"a": budget(1)}, True, True)), {"a", "b"})
        self.assertEqual(set(budgets.accepted(old, {"a": budget(1)}, False, True)), {"a"})

    def test_written_file_reads_back(self):
        values = {"b": budget(2.5), "a": budget(1) | {"measures": 'a "quoted" 字'}}
        read = tomllib.loads(budgets.written(values, "1.2.3"))
        self.assertEqual(read.pop("rustc"), "1.2.3")
        self.assertEqual(read, values)


class Measured(unittest.TestCase):
    def read(self, *lines):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "measured"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            return budgets.measured(path)

    def test_counts_of_gungraun_are_divided_by_repetitions(self):
        for values in ({"new": 6400}, {"new": 6400, "old": 1}):
            metrics = {"Ir": {"values": values}}
            summary = {
                "function_name": "frames",
                "id": "direct",
                "profiles": [{"data": {"total": {"metrics": metrics}}}],
            }
            self.assertEqual(self.read(summary)["instructions-of-frame-direct"]["value"], 100)

    def test_whole_numbers_have_no_decimals(self):
        found = self.read({"budget": "a"} | budget(3.0), {"budget": "b"} | budget(3.4))
        self.assertEqual([str(found[name]["value"]) for name in "ab"], ["3", "3.4"])

    def test_nothing_measured_is_an_error(self):
        with self.assertRaises(SystemExit):
            self.read()


if __name__ == "__main__":
    unittest.main()
