"""The page as one HTML document."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from dcprune.errors import DcpruneError
from dcprune.report.charts.axes import number

if TYPE_CHECKING:
    import jinja2

    from dcprune.report.page import Page


@cache
def template() -> jinja2.Template:
    """The page's template, with autoescaping on.

    Raises:
        DcpruneError: Jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise DcpruneError('The report page needs Jinja2: pip install "dcprune[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcprune.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(re.split(r"(?<=[./_-])", name))
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html.j2")


def render(page: Page, *, version: str) -> str:
    """The page as one HTML document, made by dcprune `version`.

    Its content security policy admits nothing from outside and no script but the one of the copy button.

    Raises:
        DcpruneError: Jinja2 is not installed.
    """
    script = resources.files("dcprune.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template().render(page=page, script=script, script_hash=digest, version=version)
