"""A measurement put on the page of the folder that was measured."""

import json
from pathlib import Path
from typing import Any

from bondwise.errors import DataError
from bondwise.report.page import finite, page, write_whole

Report = dict[str, Any]


def report_of(folder: str) -> Report:
    """The report of a folder, whose page takes a measurement.

    Raises:
        DataError: it has none, or one that makes no page.
    """
    try:
        found = json.loads((Path(folder) / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "targeted" not in found:
        raise DataError(f"{folder} has no page of bondwise compress; leave --page out.")
    return found


def put(measured: Report, folder: str) -> Path:
    """Put what was measured into report.json and report.html, in the place of what was there.

    Returns:
        The page.

    Raises:
        DataError: the folder has no page, or cannot be written to.
    """
    report = report_of(folder) | {"speed": finite(measured)}
    try:
        write_whole(json.dumps(report, indent=1, allow_nan=False), Path(folder) / "report.json")
        return write_whole(page(report), Path(folder) / "report.html")
    except OSError as error:
        raise DataError(
            f"The page of {folder} cannot be written ({error.strerror}); leave --page out."
        ) from error
