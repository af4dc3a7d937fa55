"""The page of `mssts bench report` in a browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.browser import browser
from support.tools import needs_tool

from mssts.cli import main


@needs_tool("chromium")
def test_the_page_needs_nothing_else_and_fits_a_phone(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert main(["bench", "report", "--out", str(report)]) == 0

    async def look() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.size(390, 844)
            await page.go(report.as_uri())
            assert await page.until("document.readyState === 'complete' && document.querySelectorAll('section').length")
            assert await page.value("document.documentElement.scrollWidth") == 390
            assert page.errors == []
            assert {url for url in page.requests if not url.startswith("data:")} == {report.as_uri()}

    asyncio.run(look())
