"""The leaderboard's page: what it says as a file, and how it sorts and filters in a browser."""

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import EXECUTABLE, Browser
from leaderboard_runs import NASTY, row, write_run, write_runs
from report_page import Page

from evaluation.leaderboard import read_leaderboard
from evaluation.leaderboard_page import write_leaderboard


def write(folder: Path) -> Path:
    return write_leaderboard(read_leaderboard(folder), folder)[0]


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write_leaderboard(read_leaderboard(write_runs(tmp_path)), tmp_path)
    assert paths == [tmp_path / f"leaderboard.{suffix}" for suffix in ("html", "md", "tex")]
    assert all(path.stat().st_size for path in paths)
    assert not list(tmp_path.glob(".leaderboard*"))


def test_page_is_self_contained_and_its_script_is_the_one_allowed(tmp_path: Path) -> None:
    page = Page(write(write_runs(tmp_path)))
    assert not re.search(r"https?:|url\(|@import", page.html)
    links = set(page.values("href", "src"))
    assert links == {"data:,", "studies/cca/report.html"}
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for value in page.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "prefers-color-scheme: dark" in page.html


def test_page_says_what_the_rows_say(tmp_path: Path) -> None:
    text = " ".join(Page(write(write_runs(tmp_path))).text.split())
    for expected in (
        "15 arms of 3 runs, 2 ways of measuring",
        "adm-inception, n = 50000 against 1000 reference images",
        "mnist-cnn, n = 2000 against 1000 reference images, reference abababababababab , extractor cafe42",
        "The guidance question FID, lower is better",
        "too few images (1 arm)",
        "8.00–10.00",
        "± 0.31",
        r"\begin{tabular}",
        "| run | arm | method |",
    ):
        assert expected in text, expected


def test_four_cells_of_every_model(tmp_path: Path) -> None:
    html = write(write_runs(tmp_path)).read_text()
    question = html.split('<table class="question"')[2]
    rows = re.findall(r"<tr data-words.*?</tr>", question.partition("</table>")[0], re.DOTALL)
    cells = [
        [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.split(r"<td[^>]*>", one)[1:]] for one in rows
    ]
    assert ["studies/ cca mnist/cca", "base", ""] in [cell[:3] for cell in cells]
    base = next(cell for cell in cells if cell[0].startswith("studies/ cca") and cell[1] == "base")
    assert base[3:] == [
        "17.00 16.00–18.00",
        "10.50 ± 0.31 T=0.8 best of 2 settings",
        "9.00 8.00–10.00 guidance 2, T=1",
        "not measured",
    ]
    aligned = next(cell for cell in cells if cell[0].startswith("studies/ ddo") and cell[1] == "aligned")
    assert aligned[3:] == ["9.90 8.90–10.90", "undefined T=1, top-k 50", "not measured", "not measured"]


def test_names_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "javascript:x&<b>%", row(NASTY, 16.0, remarks=(f'"{NASTY}',)), name=NASTY)
    (tmp_path / "javascript:x&<b>%" / "report.html").touch()
    page = Page(write(tmp_path))
    assert page.html.count("<script") == 1
    assert NASTY in page.text
    assert "javascript%3Ax%26%3Cb%3E%25/report.html" in page.values("href")
    assert f'"{NASTY}' in page.values("title")


def test_only_damaged_runs_make_a_page_that_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "results.jsonl").write_text("[]\n")
    text = Page(write(tmp_path)).text
    assert "0 arms of 0 runs" in text
    assert "Left out: " in text


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.skip("no chromium and no google-chrome on this machine")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_runs(tmp_path_factory.mktemp("runs"))
    write_run(root / "damaged", row("base", 1.0), name=NASTY)
    os.truncate(root / "damaged" / "results.jsonl", 9)
    write_run(root / NASTY.replace("/", ""), row(NASTY, 30.0), name=NASTY)
    return write(root)


LONG = "[...document.querySelectorAll('table:not(.question)')].at(-1)"
ROWS = f"[...{LONG}.tBodies[0].rows].filter((row) => row.checkVisibility())"


def column(title: str) -> str:
    """JavaScript for the shown texts of one column of the long table of digits."""
    index = f"[...{LONG}.querySelectorAll('th')].findIndex((th) => th.textContent.startsWith('{title}'))"
    return (
        f"{ROWS}.map((row) => row.cells[{index}].querySelector('span')?.textContent ?? row.cells[{index}].textContent)"
    )


def press(title: str) -> str:
    return f"[...{LONG}.querySelectorAll('th button')].find((each) => each.textContent.startsWith('{title}')).click()"


def sorted_by(browser: Browser) -> tuple[str, str]:
    found = browser.look(
        f"[...{LONG}.querySelectorAll('th[aria-sort]')].map((th) => [th.dataset.key, th.getAttribute('aria-sort')])"
    )
    assert len(found) == 1
    return tuple(found[0])


def test_the_address_sorts_and_filters(browser: Browser, page: Path) -> None:
    browser.open(page, "sort=recall&filter=ddo+base&guidance=off")
    assert browser.look(column("recall")) == ["0.670", "0.630", "0.605"]
    assert browser.look(column("FID")) == ["17.00", "13.00", "10.50"]
    assert sorted_by(browser) == ("recall", "descending")
    assert browser.look("document.querySelector('output').value") == "3 of 16 arms"
    assert browser.look("document.querySelectorAll('article:not([hidden])').length") == 1
    assert browser.look("document.querySelector('[data-state=guidance]').value") == "off"
    assert browser.look(f"[...{LONG}.querySelectorAll('.best')].map((cell) => cell.innerText.split('\\n')[0])") == [
        "0.670",
        "10.50",
    ]
    browser.open(page, "sort=fid&dir=desc&filters=filtered")
    assert browser.look(column("FID")) == ["13.00", "13.00", "10.50", "10.50", "undefined", "undefined"]
    assert not browser.complaints


def test_columns_turn_when_pressed_and_undefined_stays_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert sorted_by(browser) == ("fid", "ascending")
    fids = browser.look(column("FID"))
    assert fids[:2] == ["6.90", "7.50"]
    assert fids[-2:] == ["undefined", "undefined"]
    browser.look(press("FID"))
    assert browser.look(column("FID")) == [*reversed(fids[:-2]), *fids[-2:]]
    browser.look(press("recall"))
    assert sorted_by(browser) == ("recall", "descending")
    assert browser.look("location.hash") == "#dir=desc&sort=recall"
    assert browser.look(column("recall"))[-1] == "undefined"
    browser.look(press("guidance"))
    assert browser.look(column("guidance")) == ["off"] * 13 + ["2", "2"]
    browser.look("document.querySelector('#reset').click()")
    assert browser.look(column("FID")) == fids
    assert browser.look("location.hash") == ""
    assert not browser.complaints


def test_controls_change_the_address(browser: Browser, page: Path) -> None:
    browser.open(page)
    typed = "box.value = 'CCA'; box.dispatchEvent(new Event('input'))"
    browser.look(f"{{ const box = document.querySelector('[data-state=filter]'); {typed} }}")
    assert browser.look("location.hash") == "#filter=CCA"
    assert browser.look("document.querySelector('output').value") == "7 of 16 arms"
    browser.look("location.hash = 'filter=nothing+like+it'")
    browser.look("new Promise((done) => setTimeout(done))")
    assert browser.look("document.querySelector('#none').checkVisibility()")
    assert browser.look("document.querySelector('output').value") == "0 of 16 arms"
    assert not browser.complaints


def test_a_name_is_no_script(browser: Browser, page: Path) -> None:
    browser.open(page, "filter=%3Cscript%3E&sort=%22%3E%3Cscript%3E")
    assert browser.look("document.scripts.length") == 1
    assert browser.look(column("FID")) == ["30.00"]
    assert not browser.complaints


def test_a_table_without_the_script(tmp_path: Path) -> None:
    page = Page(write(write_runs(tmp_path)))
    assert page.values("aria-sort") == ["ascending", "ascending"]  # of every long table
    assert ("button", "disabled", "") in page.attributes
    assert page.values("class").count("num best") == 2 + 5 + 3  # equal ones are all marked
