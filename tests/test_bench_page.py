"""The report's page in a real browser: as people read it, sort it, filter it and print it.

Where there is no browser these are skipped, and fail in CI; `make browser` gets one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from bench.page import html
from tests.bench_report_runs import sample

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_DESKTOP, _PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
_TIMES = "#dropout-cpu-times"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One on the PATH, or else Playwright's own."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        except Error as missing:
            reason = f"no browser, which `make browser` gets: {missing.message.splitlines()[0]}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(sample()), encoding="utf-8")
    return path.as_uri()


class Opened:
    """A page, with all that it asked for and all that it complained of."""

    def __init__(self, browser: Browser, address: str, **options: Any):
        self.context = browser.new_context(**{"viewport": _DESKTOP, **options})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Any]:
    """Opens the page; asserts afterwards that it had no complaint and fetched nothing."""
    opened: list[Opened] = []

    def make(**options: Any) -> Page:
        opened.append(Opened(browser, address, **options))
        return opened[-1].page

    yield make
    for each in opened:
        each.context.close()
        assert each.complaints == []
        assert set(each.requests) == {address}


def column(table: Locator, heading: str) -> list[str]:
    """First lines of the cells under a heading, of the rows that are shown."""
    headings = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    cells = table.locator(f"tbody tr:visible > :nth-child({headings.index(heading) + 1})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]


def test_rows_are_sorted_up_down_and_as_they_were(open_page: Any) -> None:
    table = open_page().locator(_TIMES)
    before = column(table, "regops")
    header = table.get_by_role("columnheader", name="regops", exact=True)
    button = header.get_by_role("button")
    assert header.get_attribute("aria-sort") == "none"
    values = [seconds(text) for text in before]
    assert values != sorted(values)
    for direction, expected in (
        ("ascending", sorted(values)),
        ("descending", sorted(values, reverse=True)),
        ("none", values),
    ):
        button.click()
        expect(header).to_have_attribute("aria-sort", direction)
        assert [seconds(text) for text in column(table, "regops")] == expected
    # A size is sorted as a number; and only one column at a time says that it is.
    table.get_by_role("columnheader", name="size").get_by_role("button").click()
    assert column(table, "size")[:7] == ["64"] * 6 + ["4k"]
    assert table.locator("[aria-sort=ascending]").count() == 1


def test_what_has_no_figure_is_sorted_last_either_way(open_page: Any) -> None:
    table = open_page().locator(_TIMES)
    button = table.get_by_role("columnheader", name="vs compile").get_by_role("button")
    for _ in range(2):
        button.click()
        assert column(table, "vs compile").index("wrong") == 29


def test_rows_are_filtered_by_words_and_choices(open_page: Any) -> None:
    page = open_page()
    table = page.locator(_TIMES)
    box = page.locator("[data-table]", has=table)
    count = box.get_by_role("status")
    box.get_by_label("Filter").fill("BFLOAT16  16m")
    expect(count).to_have_text("3 of 30 rows")
    assert column(table, "size") == ["16M"] * 3
    box.get_by_label("direction").select_option("backward")
    expect(count).to_have_text("1 of 30 rows")
    box.get_by_label("Filter").fill("no such words")
    expect(count).to_have_text("0 of 30 rows")
    box.get_by_label("Filter").fill("")
    expect(count).to_have_text("10 of 30 rows")
    # Another table is another matter.
    assert page.locator("#adamw-cpu-times tbody tr:visible").count() == 8


def test_all_of_it_works_by_keyboard(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    table = page.locator(_TIMES)
    box = page.locator("[data-table]", has=table)
    box.get_by_label("Filter").focus()
    page.keyboard.type("float32 backward 16M")
    expect(box.get_by_role("status")).to_have_text("2 of 30 rows")
    for _ in range(4):  # two choices that are left and buffers, then the box that scrolls
        page.keyboard.press("Tab")
    expect(box.get_by_role("region")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(table.locator("thead th").first).to_have_attribute("aria-sort", "ascending")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_command_is_shown_and_copied(open_page: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    cell = page.locator(f"{_TIMES} tbody tr").last.locator("td").last
    expect(cell.locator("code")).to_be_hidden()
    cell.get_by_text("command").click()
    command = "python -m bench --op dropout --size 16M --dtype bfloat16 --device cpu"
    expect(cell.locator("code")).to_have_text(command)
    button = cell.get_by_role("button")
    button.click()
    expect(button).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == command


@pytest.mark.parametrize("viewport", [_PHONE, _DESKTOP], ids=["phone", "desktop"])
def test_the_page_itself_never_scrolls_sideways(open_page: Any, viewport: dict[str, int]) -> None:
    page = open_page(viewport=viewport)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    # What is wider scrolls in a box that the keyboard reaches.
    for box in page.locator(".scroll").all():
        if box.evaluate("each => each.scrollWidth > each.clientWidth"):
            assert box.get_attribute("tabindex") == "0"
            assert box.get_attribute("aria-label")
    widths = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(each => !each.closest('.scroll, nav, svg')"
        " && each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.outerHTML)"
    )
    assert widths == []


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", _DESKTOP), ("dark", _PHONE)], ids=["desktop", "phone"]
)
def test_axe_finds_nothing(open_page: Any, scheme: str, viewport: dict[str, int]) -> None:
    page = open_page(color_scheme=scheme, viewport=viewport)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


# Of every piece of text: its own colour and that which is behind it.
_TEXTS = """() => [...document.querySelectorAll('body *')]
  .filter(each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .filter(each => each.checkVisibility() && !each.closest('script, style, svg'))
  .map(each => {
    let behind = each;
    const paper = () => getComputedStyle(behind).backgroundColor;
    while (paper() === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    return [getComputedStyle(each).color, paper()].join(';');
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(open_page: Any, scheme: str) -> None:
    pairs = set(open_page(color_scheme=scheme).evaluate(_TEXTS))
    assert len(pairs) >= 5
    for pair in pairs:
        assert contrast(*pair.split(";")) >= 4.5, pair


def contrast(first: str, second: str) -> float:
    """Of two colours as "rgb(...)", as WCAG defines it."""
    darker, lighter = sorted(map(luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    channels = [int(each) / 255 for each in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_stand_out(open_page: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for element, style, least in (("text", "fill", 4.5), ("use", "stroke", 3.0)):
        colours = page.locator(f"figure svg {element}").evaluate_all(
            "(all, style) => all.map(each => getComputedStyle(each)[style])", style
        )
        assert len(set(colours)) > (1 if element == "use" else 0)
        for colour in set(colours) - {"none"}:
            assert contrast(colour, paper) >= least, (element, colour)


def test_the_reader_may_choose_the_colours(open_page: Any) -> None:
    page = open_page(color_scheme="light")
    button = page.get_by_role("button", name="Colours")
    colours = []
    for name in ("as the system", "light", "dark"):
        expect(button).to_have_text(f"Colours: {name}")
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        button.click()
    assert colours[0] == colours[1] != colours[2]
    button.click()
    button.click()
    page.reload()
    expect(button).to_have_text("Colours: dark")


def test_plots_say_what_they_show(open_page: Any) -> None:
    plots = open_page().get_by_role("img")
    labels = plots.evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert len(labels) == len(set(labels)) > 10
    assert any("dropout, forward, float32, cpu" in label and "regops" in label for label in labels)
    title = plots.first.locator("use title").first.text_content()
    assert title == "eager, 64: 4.51 µs (4.4–4.62 µs)"


def test_without_its_script_all_is_there_and_nothing_is_dead(open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator(f"{_TIMES} tbody tr:visible").count() == 30
    assert page.locator("button:visible, input:visible, select:visible").count() == 0
    page.locator(f"{_TIMES} summary").first.click()
    expect(page.locator(f"{_TIMES} code").first).to_be_visible()


def test_what_is_printed_is_whole(open_page: Any) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    box = page.locator("[data-table]", has=page.locator(_TIMES)).locator(".scroll")
    assert box.evaluate("each => each.clientHeight >= each.scrollHeight")
    expect(page.locator(f"{_TIMES} code").first).to_be_visible()
    assert page.locator("nav, input, button:not(th button)").filter(visible=True).count() == 0
    assert len(page.pdf()) > 100_000


def test_a_page_opens_from_disk(address: str) -> None:
    assert address.startswith("file:")
    assert Path(address.removeprefix("file://")).stat().st_size < 1_500_000
