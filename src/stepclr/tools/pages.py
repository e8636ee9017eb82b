"""What the HTML pages share: their look, `style.css`, and templates in which whatever a name contains is text."""

import base64
import hashlib
from functools import cache
from importlib import resources

import jinja2


@cache
def template(package: str) -> jinja2.Template:
    """`page.html` of a package of `stepclr.tools`; in it, `asset` is the text of a file of `tools/`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(f"stepclr.tools.{package}", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Absent,
    )
    environment.globals |= {"asset": asset, "plotly": _plotly}
    environment.filters["sha256"] = _sha256
    return environment.get_template("page.html")


def asset(name: str) -> str:
    """The text of a file of `tools/`, such as `report/page.css`."""
    return (resources.files("stepclr.tools") / name).read_text("utf-8")


def _plotly() -> str:
    """The bundle that comes with Plotly's Python package."""
    bundle = resources.files("plotly") / "package_data" / "plotly.min.js"
    return bundle.read_text("utf-8").replace("</script", "<\\/script")


def _sha256(text: str) -> str:
    """How a Content-Security-Policy names the one script, or style sheet, that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Absent(jinja2.StrictUndefined):
    """A part that a section lacks: a template may test it, but not show it."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False
