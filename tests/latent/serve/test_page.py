"""The page in a real browser: type, watch three answers stream, move a slider, stop; nothing leaves the host.

The screenshot in ``docs/`` is made here: SMELT_SCREENSHOT=1 pytest tests/latent/serve/test_page.py
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_kit import LiveServer, wait_until

from smelt.latent import generating
from smelt.latent.openai_requests import Limits
from smelt.latent.server_app import Access
from smelt.latent.serving import Served

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get install --yes chromium chromium-driver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-device-scale-factor=1 --hide-scrollbars"
)
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def new_browser(profile: Path, width: int = 1360, height: int = 850, dark: bool = False) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = f"needs Chromium and its driver: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},{height}"]:
        options.add_argument(flag)
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Page:
    """The page as somebody who looks at it and types."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.asked: list[str] = []

    def open(self) -> Page:
        self.browser.get(self.url)
        wait_until(
            lambda: self.browser.execute_script("return document.documentElement.dataset.ready") == "yes"
        )
        return self

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def type(self, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.find("#prompt").send_keys(text, Keys.ENTER)

    def press(self, selector: str, key: str, times: int = 1) -> None:
        from selenium.webdriver.common.keys import Keys

        self.find(selector).send_keys(getattr(Keys, key) * times)

    def answers(self, turn: int = -1) -> dict[str, str]:
        cards = self.all(".turn")[turn].find_elements("css selector", ".answer")
        return {
            card.get_attribute("data-model"): card.find_element("css selector", ".text").text
            for card in cards
        }

    def busy(self) -> int:
        return len(self.all('.answer[aria-busy="true"]'))

    def wait(self) -> Page:
        time.sleep(0.3)  # the pause after which a moved slider asks again
        wait_until(lambda: self.busy() == 0, 30)
        return self

    def complaints(self) -> list[str]:
        """Everything on the console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def hosts(self) -> set[str]:
        """Every host the page asked for anything since the last call."""
        found = set()
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith(("data:", "chrome:", "about:")):
                    found.add(address.split("/")[2])
                    self.asked.append(address)
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = new_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Page:
    browser.get(f"{server.url}/health")
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get_log("performance"), browser.get_log("browser")
    return Page(browser, server.url).open()


def screenshot(page: Page, name: str) -> None:
    if os.environ.get("SMELT_SCREENSHOT"):
        target = Path(__file__).parents[3] / "docs" / name
        target.parent.mkdir(exist_ok=True)
        page.browser.save_screenshot(str(target))


def test_type_stream_move_and_see_three_answers(page: Page, server: LiveServer) -> None:
    assert page.find("#welcome").is_displayed() and page.find("#send").is_enabled()
    page.type("r:abcd>")
    page.wait()
    assert not page.find("#welcome").is_displayed()
    first = page.answers()
    assert list(first) == ["base", "blend", "donor"]  # beside each other, the blend in the middle
    assert first["base"] == first["blend"] == "dcba" != first["donor"]
    page.type("s:abcd>")
    second = page.wait().answers()
    assert (
        page.answers(0) == first
        and len({card.location["y"] for card in page.all(".turn:last-child .answer")}) == 1
    )

    page.press("#ratio", "HOME")  # ratio 0: the blend is the base
    assert page.find("#ratio-value").text == "0.00"
    at_0 = page.wait().answers()
    page.press("#ratio", "END")
    at_1 = page.wait().answers()
    assert page.find("#ratio-value").text == "1.00"
    assert at_0["blend"] == second["base"] != at_1["blend"] == "bcde" == second["donor"]
    for answers in (at_0, at_1):
        assert (answers["base"], answers["donor"]) == (second["base"], second["donor"])

    about = page.find('.turn:last-child [data-model="blend"] header span').text
    assert about == "slerp · layer 4 of 4 (last) · ratio 1.00"
    page.press("#layer", "ARROW_LEFT")
    page.wait()
    assert "layer 3 of 4" in page.find('.turn:last-child [data-model="blend"] header span').text
    for footer in page.all(".answer footer"):
        assert "tokens/s" in footer.text and footer.text.split()[0].isdigit()

    page.press("#layer", "END")
    page.press("#ratio", "ARROW_LEFT", 50)
    assert page.wait().answers()["blend"] == "bcde"  # both skills in one model
    page.type("r:gfab>")
    assert page.wait().answers()["blend"] == "bafg"
    screenshot(page, "latent_page.png")
    assert page.complaints() == []
    assert page.hosts() == {f"127.0.0.1:{server.port}"}
    assert any(address.endswith("/v1/chat/completions") for address in page.asked)


def test_operator_scope_and_format(page: Page) -> None:
    from selenium.webdriver.support.ui import Select

    assert [o.text for o in Select(page.find("#op")).options] == ["lerp", "slerp", "regmean", "task vector"]
    page.type("s:gfed>")
    page.wait()
    seen = set()
    for op in ("regmean", "task_vector", "lerp"):
        Select(page.find("#op")).select_by_value(op)
        page.wait()
        assert page.find('[data-model="blend"] header span').text.startswith(op)
        seen.add(page.answers()["blend"])
    assert len(seen) == 1  # three names of one straight line at this ratio
    Select(page.find("#scope")).select_by_value("generated")
    page.wait()
    Select(page.find("#format")).select_by_value("plain")
    page.type("r:abcd>")
    assert page.wait().answers()["base"] == "dcba"
    page.hosts()
    assert page.asked[-1].endswith("/v1/completions") and page.complaints() == []


def test_settings_are_remembered(page: Page) -> None:
    page.press("#ratio", "ARROW_RIGHT", 7)
    page.find("#seed").clear()
    page.find("#seed").send_keys("42")
    page.find("#live").click()
    page.open()
    assert page.find("#ratio-value").text == "0.57" and page.find("#seed").get_attribute("value") == "42"
    assert not page.find("#live").is_selected()
    page.type("r:abcd>")
    page.wait()
    page.press("#ratio", "END")
    page.wait()
    assert "ratio 0.57" in page.find('[data-model="blend"] header span').text  # live is off


def test_keys(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    field = page.find("#prompt")
    assert page.browser.switch_to.active_element == field
    field.send_keys("r:ab", Keys.SHIFT, Keys.ENTER, Keys.NULL, "cd>")
    assert field.get_attribute("value") == "r:ab\ncd>" and not page.all(".turn")
    field.send_keys(Keys.ENTER)
    page.wait()
    assert page.find(".asked").text == "r:ab\ncd>" and field.get_attribute("value") == ""
    field.send_keys(Keys.ARROW_UP)
    assert field.get_attribute("value") == "r:ab\ncd>"
    page.find("#reset").click()
    assert page.find("#welcome").is_displayed() and not page.all(".turn")


def test_everything_has_a_label(page: Page) -> None:
    page.type("r:abcd>")
    page.wait()
    unnamed = page.browser.execute_script(
        "return [...document.querySelectorAll('input,select,textarea,button,article')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.find('[data-model="donor"]').accessible_name == "Answer of donor"
    assert page.find("#ratio").accessible_name == "Ratio"


def test_stop(page: Page, server: LiveServer, slow: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """While answers stream; what is there stays, and the server stops too."""
    original = generating.Task

    def endless(*args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "ignore_eos": True})

    monkeypatch.setattr("smelt.latent.openai_requests.Task", endless)
    assert not page.find("#stop").is_displayed()
    page.type("r:abcd>")
    wait_until(lambda: all(len(text) >= 4 for text in page.answers().values()), 30)
    assert page.busy() == 3 and page.find("#stop").is_displayed() and not page.find("#send").is_enabled()
    growing = page.answers()
    wait_until(lambda: page.answers() != growing)  # it streams
    page.find("#stop").click()
    wait_until(lambda: page.busy() == 0)
    assert all("stopped" in footer.text for footer in page.all(".answer footer"))
    wait_until(lambda: server.pool.running == 0)
    assert all(text.startswith(growing[name][:4]) for name, text in page.answers().items())
    assert page.complaints() == [] and page.find("#send").is_enabled()


def test_errors_are_shown_where_they_belong(page: Page) -> None:
    page.type("r:" + "a" * 300)
    page.wait()
    for error in page.all(".answer .error"):
        assert "256 in all" in error.text
    page.type("r:abcd>")  # and the page goes on


def test_a_key_is_asked_for(browser: Any, served: Served) -> None:
    with LiveServer(served, access=Access("secret"), limits=Limits()) as live:
        browser.get(live.url)
        page = Page(browser, live.url)
        wait_until(lambda: page.find("#key-dialog").is_displayed())
        page.find("#key").send_keys("secret")
        page.find("#key-dialog button").click()
        wait_until(lambda: page.find("#models").text != "")
        page.type("r:abcd>")
        assert page.wait().answers()["blend"] == "dcba"


def test_a_narrow_and_dark_screen(tmp_path: Path, server: LiveServer) -> None:
    """Nothing is wider than the window, and text can be told from its ground."""
    driver = new_browser(tmp_path, 500, 900, dark=True)
    try:
        page = Page(driver, server.url).open()
        page.type("r:abcd>")
        page.wait()
        width, view, ground, ink = driver.execute_script(
            "const s = getComputedStyle(document.body);"
            "return [document.documentElement.scrollWidth, innerWidth, s.backgroundColor, s.color]"
        )
        assert width <= view
        assert _brightness(ground) < 60 and _brightness(ink) > 200
        assert page.complaints() == []
    finally:
        driver.quit()


def _brightness(colour: str) -> float:
    numbers = [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(numbers) / 3
