"""The tests that the page on security names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_attack_on_the_page_has_the_tests_that_it_names():
    page = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "test_" in line]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/.]+\.py)`|`(test_\w+)`", row)
        assert named[0][0], row
        for file, test in named:
            if file:
                content = "".join(
                    path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(file.rpartition("/")[2])
                )
                assert content, f"{file} in: {row}"
            else:
                assert f"def {test}(" in content, f"{test} in: {row}"
