"""What a report says in sentences: the headline, what was not run, and what a reader must know before the numbers."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

PLACES = {
    "moved": "layouts it never saw",
    "shared": "shared scenes it never saw",
    "libero": "stored initial states",
    "libero_plus": "perturbed LIBERO-Plus episodes",
}


def headline(section: Mapping[str, Any]) -> str:
    """One sentence: the first group's rate, its trained control's rate, and the paired difference."""
    main, *others = section["groups"]
    if main["success_rate"] is None:
        return "No episode was decided."
    subject = "The policy" if main["label"] == "policy" else f"{main['label']}"
    text = f"{subject} succeeds on {main['text']} of {PLACES.get(section['kind'], section['kind'])}"
    decided = [group for group in others if group["success_rate"] is not None]
    control = next((group for group in decided if group["role"] == "trained"), None)
    if control is not None:
        low, high = control["difference"]["difference_interval95"]
        text += (
            f"; the same network {'trained blind' if control['label'] == 'blind-trained' else control['label']} on "
            f"{control['text']}: a paired difference of {100 * control['difference']['difference']:+.0f} points "
            f"({100 * low:+.0f} to {100 * high:+.0f})"
        )
    rest = [group for group in decided if group is not control]
    if rest:
        text += ". " + _capital(", ".join(f"{group['label']} {group['success_rate']:.0%}" for group in rest))
    return text + "."


def not_run(section: Mapping[str, Any]) -> str:
    """The banner of what is left out of the benchmark, or nothing where all of it was decided."""
    covered = section["coverage"]
    if covered is None or (covered["decided"] >= covered["expected"] and covered["all_suites"]):
        return ""
    suites = "" if covered["all_suites"] else f" ({', '.join(covered['suites'])})"
    text = f"{covered['title']}{suites}: {covered['decided']:,} of {covered['expected']:,} episodes."
    rest = {column["title"]: column["expected"] - column["decided"] for column in covered["columns"]}
    lacking = [f"{title} {count:,}" for title, count in rest.items() if count > 0]
    return text + (f" Not run: {', '.join(lacking)}." if lacking else "")


def warnings(all_sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before the numbers."""
    lines = [text for section in all_sections if (text := not_run(section))]
    kinds = {section["protocol"]["assets"] for section in all_sections}
    if kinds != {"real"}:
        lines.append(
            "Stand-in assets among the real ones: physics is LIBERO's, pixels are not. These rates are not comparable "
            "with published numbers."
            if "standins" not in kinds
            else "Stand-in assets: shapes and pixels are this project's own. These rates are not comparable with "
            "published numbers."
        )
    if not all(section["protocol"]["published"] for section in all_sections):
        lines.append("Renderer, image size or resets differ from the published protocol (see the end of the page).")
    for section in all_sections:
        lines += [f"{note}." for note in section["notes"]]
        for group in section["groups"]:
            if group["error"]:
                reasons = [error["reason"] for error in group["errors"]]
                lines.append(
                    f"{group['label']}, {section['title']}: {group['error']} episodes ended in an error and are in no "
                    f"rate ({'; '.join(reasons[:3])})."
                )
            if group["missing"]:
                lines.append(f"{group['label']}, {section['title']}: {group['missing']} episodes were not run.")
            if group["unpaired"]:
                lines.append(
                    f"{group['label']}, {section['title']}: {group['unpaired']} episodes were not run by "
                    f"{section['groups'][0]['label']} too and are left out."
                )
    return lines


def senses(section: Mapping[str, Any]) -> list[str]:
    """What each control says about the need for sight and language, in a sentence."""
    main, lines = section["groups"][0]["label"], []
    for control in section["controls"]:
        word = {"trained": "need", "replay": "need", "ablated": "use"}[control["role"]]
        shown, silent, missing = control["shown"], control["not_shown"], control["not_run"]
        total = len(shown) + len(silent)
        what = f"{main} uses {control['sense']} on" if word == "use" else f"{control['sense']} shown to be needed by"
        text = f"{_capital(what)} {len(shown)} of {total} task{'s' if total > 1 else ''} (against {control['label']})"
        if silent:
            text += f"; not shown for {_listed(silent)}"
        if missing:
            text += f"; not run: {_listed(missing)}"
        lines.append(text + ".")
    return lines


def _listed(tasks: Sequence[str], most: int = 6) -> str:
    """The tasks, or their number where a list would be longer than anyone reads; the table has them all."""
    return ", ".join(tasks) if len(tasks) <= most else f"{len(tasks)} tasks"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
