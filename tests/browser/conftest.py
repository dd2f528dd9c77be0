"""One server and one browser for these tests, which one worker takes (``tests/conftest.py``)."""

from collections.abc import Iterator

import pytest

from browser.driver import Page
from browser.lab import IPYKERNEL6, Lab, server
from browser.window import Window, browser


@pytest.fixture(scope="package")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with server(tmp_path_factory.mktemp("lab")) as running:
        yield running


# not for the session: as long as it lives, its thread has a running event loop
@pytest.fixture(scope="package")
def chrome(chromium: str) -> Iterator[Window]:
    with browser(chromium) as running:
        yield running


@pytest.fixture(scope="module", params=["python3", "ipykernel6"])
def kernel(request: pytest.FixtureRequest) -> str:
    """The names of the kernels: ipykernel 7 of the environment, and ipykernel 6 of the set-up."""
    if request.param == "ipykernel6" and not (IPYKERNEL6 / "ipykernel").is_dir():
        pytest.skip("no ipykernel6 beside the environment: `make test` puts it there")
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A test that fails leaves a picture of its page."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and isinstance(page, Page):
        path = item.config.rootpath / ".pytest_cache" / "browser" / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.tab.screenshot(path=str(path))
        report.sections.append(("the page", str(path)))
    return report
