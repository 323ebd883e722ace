"""A headless browser and a page opened in it. A module brings `page`, the file, and the mark `needs_browser`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.size(1280)
    yield browser
    browser.close()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    """The page as it opens from disk; the test must cause neither a request nor an error."""
    browser.open(page)
    yield browser
    assert browser.requests == [page.as_uri()]
    assert browser.problems == []
