"""A real browser on real sandboxes' pages: Chromium opens what ``browser_url`` says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.gateway.conftest import Site

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

_WAIT_S = 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    assert driver and chromium, "tools/setup_system.sh --test installs them"
    folder = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it refuses to run as root otherwise
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=Service(driver, env=_environment(folder)))
    found.set_page_load_timeout(_WAIT_S)
    found.set_script_timeout(_WAIT_S)
    try:
        yield found
    finally:
        found.quit()


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)}


def _wait(browser: webdriver.Chrome, title: str) -> None:
    WebDriverWait(browser, _WAIT_S).until(lambda here: here.title == title)


def _fetch(browser: webdriver.Chrome, url: str, options: str = "{credentials: 'include'}") -> str:
    """What a page's own script gets: a status and a text, or the reason why it gets nothing."""
    script = f"const done = arguments[1]; fetch(arguments[0], {options})"
    script += ".then(async answer => done(answer.type + ' ' + answer.status + ' ' + await answer.text()))"
    script += ".catch(error => done('failed ' + error.name))"
    return str(browser.execute_async_script(script, url))


def test_a_browser_uses_the_application(site: Site, browser: webdriver.Chrome) -> None:
    service = site.sandbox.service(3000)
    own = f"http://{site.host()}"
    browser.get(service.browser_url)
    _wait(browser, "first")
    assert browser.current_url == f"{own}/"
    WebDriverWait(browser, _WAIT_S).until(
        lambda here: here.find_element(By.ID, "socket").text == "first: ping from the page"
    )
    seen = [browser.current_url]
    browser.find_element(By.ID, "next").click()
    _wait(browser, "second")
    seen.append(browser.current_url)
    browser.find_element(By.ID, "home").click()
    _wait(browser, "first")
    browser.find_element(By.ID, "send").click()
    _wait(browser, "form")
    assert browser.find_element(By.ID, "got").text == "POST word=hello"
    seen.append(browser.current_url)
    assert seen == [f"{own}/", f"{own}/second?x=1", f"{own}/form"]
    browser.back()
    _wait(browser, "first")
    # Neither the page's address, nor what it can know of where it came from, nor its cookies have the token.
    told = browser.execute_script(
        "return JSON.stringify([location.href, document.referrer, document.cookie,"
        " performance.getEntries().map(entry => entry.name)])"
    )
    assert service.token not in told
    assert "_svc" not in told
    assert "own=first" in told


def test_two_sandboxes_are_strangers_to_each_other(site: Site, browser: webdriver.Chrome) -> None:
    first, second = (f"http://{site.host(sandbox=sandbox)}" for sandbox in (site.sandbox, site.other))
    for name, sandbox in (("second", site.other), ("first", site.sandbox)):
        browser.get(sandbox.service(3000).browser_url)
        _wait(browser, name)
    # The browser has both cookies now, and shows the first one's page.
    assert "own=second" not in browser.execute_script("return document.cookie")
    assert _fetch(browser, f"{first}/second").startswith("basic 200 ")
    assert _fetch(browser, f"{second}/second") == "failed TypeError"
    assert (
        _fetch(browser, f"{second}/form", "{method: 'POST', credentials: 'include', body: 'x=1'}") == "failed TypeError"
    )
    assert _fetch(browser, f"{second}/second", "{mode: 'no-cors', credentials: 'include'}") == "opaque 0 "
    framed = browser.execute_async_script(
        "const done = arguments[1], frame = document.createElement('iframe'); frame.src = arguments[0];"
        "frame.onload = () => { try { done(frame.contentWindow.document.title) } catch (error) { done(error.name) } };"
        "document.body.append(frame)",
        f"{second}/second",
    )
    assert framed == "SecurityError"
    socket = browser.execute_async_script(
        "const done = arguments[1], socket = new WebSocket(arguments[0]);"
        "socket.onopen = () => done('open'); socket.onerror = () => done('refused')",
        second.replace("http", "ws") + "/ws",
    )
    assert socket == "refused"


def test_a_sandboxs_page_cannot_use_the_api(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(site.sandbox.service(3000).browser_url)
    _wait(browser, "first")
    for host in ("localhost", "127.0.0.1"):
        url = f"http://{host}:{site.server.port}/v2/sandboxes/boxes"
        assert _fetch(browser, url) == "failed TypeError"
        assert _fetch(browser, f"http://{site.host()}/v2/sandboxes/boxes") == "basic 404 no such page"


def test_a_link_that_has_expired(site: Site, browser: webdriver.Chrome) -> None:
    url = site.link(expires_in_seconds=1)["browser_url"]
    browser.get(url)
    _wait(browser, "first")
    WebDriverWait(browser, _WAIT_S, poll_frequency=0.5).until(
        lambda here: (
            here.execute_script("location.reload()") is None
            and "Authentication required" in here.find_element(By.TAG_NAME, "body").text
        )
    )
    browser.get(url)
    assert "Service link has expired" in browser.find_element(By.TAG_NAME, "body").text


def test_a_file_that_is_shown_is_no_page_of_the_servers(site: Site, browser: webdriver.Chrome) -> None:
    site.sandbox.write(
        "/srv/page.html", "<title>as written</title><p id=text>shown</p><script>document.title = 'ran'</script>"
    )
    link = site.sandbox.generate_download_url("/srv/page.html", content_disposition="inline").download_url
    assert link.startswith(site.server.url)
    browser.get(link)
    _wait(browser, "as written")
    assert browser.find_element(By.ID, "text").text == "shown"
    assert browser.execute_script("return self.origin") == "null"
