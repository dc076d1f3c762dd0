"""Pages that need nothing beside them: templates, with the report's style and scripts in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATE = Path(__file__).parent / "template"


def render(template: Path, *, scripts: Sequence[str], **values: Any) -> str:
    """A page.

    Args:
      template: its file; it may include those of the report.
      scripts: which of the report's, by name; the template has them as `script`.
      values: of the template; text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(
        style=Markup((TEMPLATE / "page.css").read_text()),
        script=Markup("".join((TEMPLATE / f"{name}.js").read_text() for name in scripts)),
        **values,
    )
