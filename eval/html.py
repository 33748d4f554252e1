"""What the evaluator's pages have in common: templates that escape, and nothing that is fetched from elsewhere."""

import base64
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def templates() -> "jinja2.Environment":
    """The pages' templates."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def data_uri(data: bytes, kind: str) -> str:
    """``data`` as a URI that needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def timestamp() -> str:
    """When a page was written."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
