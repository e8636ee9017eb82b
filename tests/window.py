"""A page in a window of Chromium, as a person would have it."""

from pathlib import Path
from typing import Any


class Window:
    """The page in a window of its own browser context, and what it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1100, scheme: str = "light", script: str = "") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.context.set_default_timeout(120_000)  # ms; the machines are shared
        self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
