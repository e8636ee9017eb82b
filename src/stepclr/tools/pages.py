"""What the HTML pages share: their look, `style.css`, and templates in which whatever a name contains is text."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

# Where a name that is too long for a line breaks: after : / _ - and after a dot, but not within a number.
BREAKS = re.compile(r"(?<=\w[:/_-])(?=\w)|(?<=\w\.)(?=[^\W\d])")


@cache
def template(package: str, name: str = "page.html") -> jinja2.Template:
    """A template of a package of `stepclr.tools`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(f"stepclr.tools.{package}", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_Absent,
    )
    environment.globals["only_this"] = _only_this
    environment.filters["breakable"] = breakable
    return environment.get_template(name)


def asset(name: str) -> str:
    """The text of a file of `tools/`, such as `report/page.css`."""
    return (resources.files("stepclr.tools") / name).read_text("utf-8")


def breakable(words: object) -> Markup:
    """Words for a page, in which long names break where a reader would break them, such as timm:tf_efficientnet."""
    return Markup("<wbr>").join(BREAKS.split(str(words)))


def lines_of(words: str, width: int) -> list[str]:
    """The words in lines of at most `width` letters, for a chart, broken as by `breakable` and after spaces."""
    lines = [""]
    for word in re.split(rf"(?<= )|{BREAKS.pattern}", words):
        for part in [word[at : at + width] for at in range(0, len(word), width)]:
            if lines[-1] and len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def _only_this(style: str, script: str) -> Markup:
    """The Content-Security-Policy of a page: it runs its own script, has its own style, and asks for nothing."""
    allowed = {"style-src": style, "script-src": script}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in allowed.items()}
    sources = [f"{name} 'sha256-{checksum}'" for name, checksum in hashes.items()]
    return Markup("; ".join(["default-src 'none'", "img-src data:", *sources, "base-uri 'none'", "form-action 'none'"]))


class _Absent(jinja2.StrictUndefined):
    """A part that a section lacks: a template may test it, but not show it."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False
