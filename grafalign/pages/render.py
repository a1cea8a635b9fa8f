"""From a template to a page; text is escaped unless a template says otherwise."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader


def render(package: str, template: str, **values: Any) -> str:
    """Fill a template in.

    Args:
        package: where it lies, such as `grafalign.search`.
        template: its name there. It may extend `page.html` (which shows `title` and `made`), import `parts.html` and
            include `colours.css` of this room.
        values: what it shows.
    """
    environment = Environment(autoescape=True, loader=PackageLoader('grafalign', 'pages'))
    source = (files(package) / template).read_text(encoding='utf-8')
    return environment.from_string(source).render(**values)
