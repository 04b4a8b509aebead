"""Tests of report.py: python3 -m unittest discover --start-directory benches"""

import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import report

PAGE = """# Page

<!-- measured: streams/frames -->

old figures

<!-- end -->

<!-- measured: memory/write -->

kept figures

<!-- end -->
"""


def row(table, *cells):
    return {"table": table, "caption": "Two rounds.", "columns": ["measured", "service"], "row": cells}


class Report(unittest.TestCase):
    def written(self, *rows):
        with tempfile.TemporaryDirectory() as folder:
            page, measured = Path(folder) / "page.md", Path(folder) / "measured"
            page.write_text(PAGE)
            measured.write_text("".join(json.dumps(row) + "\n" for row in rows))
            with mock.patch("sys.argv", ["report.py", str(measured), str(page)]), mock.patch("builtins.print"):
                report.main()
            return page.read_text()

    def test_table_replaces_old_figures_and_others_stay(self):
        text = self.written(row("streams/frames", "p50", "1.5"), row("streams/frames", "p99", "3"), {"budget": "a"})
        self.assertIn("Two rounds.\n\n| measured | service |\n|---|---|\n| p50 | 1.5 |\n| p99 | 3 |\n", text)
        self.assertIn("cargo bench --bench streams -- frames\n", text)
        self.assertNotIn("old figures", text)
        self.assertIn("kept figures", text)
        self.assertEqual(text.count("<!-- end -->"), 2)

    def test_table_states_date_commit_and_machine(self):
        self.assertRegex(self.written(row("streams/frames", "p50", "1")), r"\n\d{4}-\d\d-\d\d, `[0-9a-f]+`.*, \d+ cores, \d+ GB, ")

    def test_table_without_a_place_is_an_error(self):
        with self.assertRaisesRegex(SystemExit, "no place for streams/new"):
            self.written(row("streams/new", "p50", "1"))

    def test_nothing_measured_is_an_error(self):
        with self.assertRaises(SystemExit):
            self.written()


if __name__ == "__main__":
    unittest.main()
