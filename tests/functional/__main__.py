# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.functional [PATTERN]``: run Nova's tests; without a pattern, write the page."""

import argparse
import sys

from tests.functional import page
from tests.functional.run import run

JOBS = 2


def main() -> int:
    """Run the tests that match; return 1 if a test failed, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "pattern", nargs="?", default="", help="regular expression of test names; default: all"
    )
    pattern = parser.parse_args().pattern
    results = []
    for result in run(pattern, JOBS):
        results.append(result)
        if result.outcome == "failed":
            print(f"FAILED: {result.name}: {result.reason}", flush=True)
    failed = sum(result.outcome == "failed" for result in results)
    booted = sum(result.outcome == "passed" and result.booted > 0 for result in results)
    print(f"{len(results)} tests, {booted} passed and booted a container, {failed} failed")
    if not pattern:
        page.write(results)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
