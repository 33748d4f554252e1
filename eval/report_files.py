"""``report.csv``: every cell of a report as one row per policy, for spreadsheets and data frames."""

import csv
import io
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

PLACE = ("section", "cell", "suite", "category", "level", "task", "task_name")
POLICY = ("label", "role")
COUNTS = ("success", "failure", "error", "episodes", "decided", "success_rate")
INTERVALS = ("interval95", "clustered95")
DIFFERENCE = ("pairs", "difference", "mcnemar_p")
DIFFERENCE_INTERVALS = ("difference_interval95", "difference_clustered95")


def csv_text(all_sections: Sequence[Mapping[str, Any]]) -> str:
    """The table; ``difference`` is the first policy's rate minus the row's, on the same episodes."""
    buffer = io.StringIO()
    bounds = [f"{name}_{end}" for name in (*INTERVALS, *DIFFERENCE_INTERVALS) for end in ("low", "high")]
    writer = csv.DictWriter(buffer, [*PLACE, *POLICY, *COUNTS, *DIFFERENCE, *bounds], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for section in all_sections for row in rows(section))
    return buffer.getvalue()


def rows(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a section: its total, suites, categories with levels, and tasks, each for every policy."""
    groups = section["groups"]
    yield from _cells(groups, groups, section=section["title"], cell="total")
    for row in section["suites"]:
        yield from _cells(groups, row["cells"], section=section["title"], cell="suite", suite=row["suite"])
    for row in section["categories"]:
        place = {"section": section["title"], "category": row["category"]}
        yield from _cells(groups, row["cells"], cell="category", **place)
        for level in row["levels"]:
            yield from _cells(groups, level["cells"], cell="level", level=level["level"], **place)
    for row in section["tasks"]:
        place = {"section": section["title"], "suite": row["suite"], "task": row["task"], "task_name": row["name"]}
        yield from _cells(groups, row["cells"], cell="task", **place)


def _cells(
    groups: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], **place: Any
) -> Iterator[dict[str, Any]]:
    for group, cell in zip(groups, cells, strict=True):
        difference = cell["difference"] or {}
        row = place | {name: group[name] for name in POLICY}
        row |= {name: cell[name] for name in COUNTS}
        row |= {name: difference.get(name) for name in DIFFERENCE}
        for names, values in ((INTERVALS, cell), (DIFFERENCE_INTERVALS, difference)):
            for name in names:
                low, high = values.get(name) or (None, None)
                row |= {f"{name}_low": low, f"{name}_high": high}
        yield row
