"""Pages in the Chromium of the system, as people see them."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

NAMES = "chromium", "chromium-browser", "google-chrome"
SERIOUS = "serious", "critical"


@dataclass(frozen=True)
class Opened:
    """A page that is open.

    Attributes:
        page: It.
        errors: What its console says is wrong.
        requests: Every address that was asked for.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Say what axe finds that is serious or critical: rule, and where."""
        from axe_playwright_python.sync_playwright import Axe

        found: dict[str, Any] = Axe().run(self.page).response
        return [
            f"{one['id']}: {node['target']}"
            for one in found["violations"]
            if one["impact"] in SERIOUS
            for node in one["nodes"]
        ]


def chromium() -> str | None:
    """Find a browser; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def open_page(path: Path, *, dark: bool = False, width: int = 1440) -> Iterator[Opened]:
    """Open a page from the disk.

    Args:
        path: Of the page.
        dark: Whether the system asks for dark colours.
        width: Of the window, px.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        opened = Opened(page)
        page.on(
            "console",
            lambda said: opened.errors.append(said.text) if said.type == "error" else None,
        )
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        try:
            page.goto(path.resolve().as_uri())
            yield opened
        finally:
            browser.close()
