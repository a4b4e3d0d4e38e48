"""The page of `hf-reformer demo` in headless Chromium, as a visitor uses it. `make testpage` installs what it needs; it is
skipped where Chromium or Playwright is missing. With PAGE_SCREENSHOTS=DIR it leaves pictures there."""

import os
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

from hf_reformer.cli import page  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SPEECH = "Fellow citizens of the Senate and of the House of Representatives, the state of the Union is strong. "


@pytest.fixture(scope="module")
def address():
    served = page.build("text-16k", "cpu", None)
    yield served.open("127.0.0.1", None, no_browser=True, block=False)
    served.blocks.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, address):
    """A new visitor's page. Nothing but this machine can be reached; errors of the page's own code fail the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    faults, elsewhere = [], []
    tab.on("pageerror", lambda error: faults.append(str(error)))

    def reach(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        elsewhere.append(route.request.url)
        return route.abort()

    tab.route("**/*", reach)
    tab.goto(address)
    tab.get_by_label("Your text").wait_for()
    yield tab
    tab.close()
    assert faults == [] and elsewhere == []


def status(tab):
    return tab.locator("#status [role=status]")


def text_of(tab):
    return tab.locator("#written textarea").input_value()


def ends(tab):
    """Waits until the writing has ended: the buttons answer again and nothing changes any more."""
    before = None
    while before != (before := (status(tab).inner_text(), text_of(tab))) or "new tokens" not in before[0]:
        tab.wait_for_timeout(700)
    return before


def set_number(tab, label, value):
    field = tab.get_by_role("spinbutton", name=re.compile(label))
    field.fill(str(value))
    field.press("Tab")


def photograph(tab, name):
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        tab.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def test_a_visitor_types_writes_and_sees_what_a_token_looked_at(tab):
    tab.get_by_label("Your text").fill(SPEECH * 3 + "The President ")
    set_number(tab, "New tokens", 120)
    tab.get_by_label("Seed").fill("3")
    tab.locator("#write").click()
    said, text = ends(tab)
    assert re.match(
        r"120 new tokens, [\d.]+ tokens per second; the prompt took [\d.]+ s; context used: 437 of 16,384", said
    )
    assert len(text) > 60
    set_number(tab, "Which of the new tokens", 100)
    tab.locator("#look").click()
    tab.locator("#picture img").wait_for()
    assert status(tab).inner_text() == "What it looked at when it wrote token 100."
    assert tab.locator("#places tr").count() > 2 and tab.locator("#places mark").count() > 2
    tab.wait_for_timeout(500)
    photograph(tab, "page")


def test_the_text_streams_and_stops(tab):
    tab.get_by_label("Your text").fill("My fellow")
    set_number(tab, "New tokens", 5000)
    tab.locator("#write").click()
    sync_api.expect(status(tab)).to_contain_text("new tokens")
    first = text_of(tab)
    tab.wait_for_timeout(1500)
    second = text_of(tab)
    assert len(second) > len(first) and second.startswith(first)
    tab.locator("#stop").click()
    said, text = ends(tab)
    assert int(said.split()[0].replace(",", "")) < 5000 and text.startswith(second)


def test_a_text_of_100_kb_is_uploaded_and_its_end_is_continued(tab, tmp_path):
    file = tmp_path / "speeches.txt"
    file.write_text((SPEECH * 1100)[:102_400])
    tab.locator("input[type=file]").set_input_files(file)
    tab.get_by_text("speeches.txt").first.wait_for()
    set_number(tab, "New tokens", 50)
    tab.locator("#write").click()
    sync_api.expect(status(tab)).to_contain_text("50 new tokens", timeout=120_000)
    said, _ = ends(tab)
    assert "context used: 16,384 of 16,384" in said
    assert said.endswith("Of 102,400 bytes only the last 16,334 tokens fit.")


def test_errors_are_shown_and_the_page_lives_on(tab):
    tab.locator("#write").click()
    tab.get_by_text("there is nothing to continue: type some text, or give a file").wait_for()
    tab.locator("#look").click()
    tab.get_by_text("there is nothing to look at yet").wait_for()
    tab.get_by_label("Your text").fill("A")
    set_number(tab, "New tokens", 3)
    tab.locator("#write").click()
    assert ends(tab)[0].startswith("3 new tokens")


def test_a_second_visitor_waits_and_is_told_so_until_the_first_closes_his_page(tab, browser, address):
    first = browser.new_page()
    first.goto(address)
    first.get_by_label("Your text").fill("Long")
    set_number(first, "New tokens", 16_000)
    first.locator("#write").click()
    sync_api.expect(status(first)).to_contain_text("new tokens")
    tab.get_by_label("Your text").fill("Short")
    set_number(tab, "New tokens", 5)
    tab.locator("#write").click()
    sync_api.expect(status(tab)).to_have_text("1 visitor is before you; your turn comes.")
    first.close()
    sync_api.expect(status(tab)).to_contain_text("5 new tokens", timeout=60_000)


def test_the_keyboard_is_enough(tab):
    tab.get_by_label("Your text").click()
    tab.keyboard.type("We the people")
    tab.keyboard.press("Shift+Enter")
    sync_api.expect(status(tab)).to_contain_text("new tokens")
    names = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        names.append(
            tab.evaluate(
                "document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.textContent"
            )
        )
        if names[-1] == "stop":
            break
    tab.keyboard.press("Enter")
    assert "write" in names and int(ends(tab)[0].split()[0]) < 400


def test_it_fits_on_a_phone(tab):
    tab.set_viewport_size({"width": 375, "height": 812})
    tab.get_by_label("Your text").fill("We the people")
    set_number(tab, "New tokens", 20)
    tab.locator("#write").click()
    ends(tab)
    tab.locator("#look").click()
    tab.locator("#picture img").wait_for()
    tab.wait_for_timeout(500)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    for name in ("#write", "#stop", "#look"):
        box = tab.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375 and box["height"] >= 30
    photograph(tab, "phone")
