"""The page of `suggest --html`: every rectangle as large as its misses, nothing from elsewhere, no markup of names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.demand.cover import Choice, Cover, Left
from mkmeta.demand.picture import page, squarified
from mkmeta.errors import printable
from tests.demand.browser import browser
from tests.demand.profiles import age, make_profile, misses

HOSTILE = "tools/</li></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>'\"&\u202e"
LINKS = ("src", "href", "srcset", "action", "data", "poster", "background")


class Parsed(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tiles: list[dict[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name in LINKS or name.startswith("on") for name, _ in attrs), (tag, attrs)
        if tag == "li":
            self.tiles.append({name: value or "" for name, value in attrs})

    def handle_data(self, data: str) -> None:
        self.text += data


def place(tile: dict[str, str]) -> tuple[float, ...]:
    """Left, top, width and height, in parts of the whole."""
    return tuple(float(part) / 100 for part in re.findall(r":([\d.]+)%", tile["style"]))


def made(counts: dict[bytes, int], chosen: set[bytes]) -> str:
    """A page of such misses."""
    choices = [Choice(path, counts[path], 3) for path in sorted(chosen)]
    left = [Left(path, count, "it changed lately") for path, count in sorted(counts.items()) if path not in chosen]
    return page(Cover(choices, left, sum(counts.values()), exact=True, others=[]), counts, "Misses")


@given(st.dictionaries(st.binary(max_size=30).filter(lambda b: b"\0" not in b), st.integers(1, 10**9), max_size=40))
def test_each_directory_is_as_large_as_its_misses(counts: dict[bytes, int]) -> None:
    chosen = {path for path in counts if path and len(path) % 2}
    chosen -= {path for path in chosen if any(path.startswith(one + b"/") for one in chosen)}
    parsed = Parsed(made(counts, chosen))
    total = sum(counts.values())
    names = {f"{printable(path) or '(the root)'}: {count:,} misses": count for path, count in counts.items()}
    assert {tile["aria-label"].rpartition(", ")[0] for tile in parsed.tiles} == names.keys()
    for tile in parsed.tiles:
        left, top, width, height = place(tile)
        assert width * height == pytest.approx(names[tile["aria-label"].rpartition(", ")[0]] / total, abs=1e-5)
        assert left + width < 1.00001 and top + height < 1.00001
        assert tile["class"].split()[0] in "sn" and tile["title"] == tile["aria-label"]
    assert parsed.tags.count("script") == parsed.tags.count("ul") == 1 and "img" not in parsed.tags
    assert sum(tile["tabindex"] == "0" for tile in parsed.tiles) == bool(counts)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60))
def test_rectangles_fill_the_picture(sizes: list[int]) -> None:
    sizes.sort(reverse=True)
    found = squarified(sizes, 300.0, 100.0)
    assert len(found) == len(sizes)
    for size, (x, y, width, height) in zip(sizes, found, strict=True):
        assert width * height == pytest.approx(size * 30_000 / sum(sizes), rel=1e-6)
        assert x > -1e-6 and x + width <= 300.0001 and y > -1e-6 and y + height <= 100.0001


def test_a_page_says_what_is_chosen_and_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sw" / HOSTILE).mkdir(parents=True)
    (tmp_path / "sw/plugins").mkdir()
    age(tmp_path / "sw/tools")
    profile = make_profile(tmp_path / "p", "/sw", [misses(HOSTILE, 9), misses("plugins", 3)])
    file = tmp_path / "page.html"
    assert main(["suggest", str(profile), "--root", str(tmp_path / "sw"), "--html", str(file)]) == 0
    assert "75.0%" in capsys.readouterr().out
    parsed = Parsed(file.read_text())
    assert [tile["class"] for tile in parsed.tiles] == ["s first", "n first"]
    for text in ("75.0%", "it changed lately", "\\xe2\\x80\\xae"):
        assert text in parsed.text
    assert "img" not in parsed.tags and "script>" not in file.read_text().replace("<script>", "", 1).replace(
        "</script>", "", 1
    )


def test_a_page_without_misses(tmp_path: Path) -> None:
    assert Parsed(made({}, set())).tiles == []


@pytest.mark.slow
@pytest.mark.needs("chromedriver")
@pytest.mark.parametrize("size", [(1280, 800), (500, 900)])
def test_in_a_browser(tmp_path: Path, size: tuple[int, int]) -> None:
    """No complaint, nothing run that a name says, and rectangles in proportion, which keys and pointer tell about."""
    counts = {b"grp/p%d/v%d/lib" % (n, v): 5000 // (n + v + 1) for n in range(8) for v in range(3)}
    counts |= {HOSTILE.encode(): 4000, b"": 77, b"\xff\n": 500}
    (tmp_path / "page.html").write_text(made(counts, {path for path in counts if path.startswith(b"grp/p1")}))
    with browser(tmp_path / "profile", size) as opened:
        opened.load(tmp_path / "page.html")
        tiles = opened.run(
            "return [...document.querySelectorAll('#map li')].map(tile => {"
            "const box = tile.getBoundingClientRect(); return [tile.ariaLabel, box.width * box.height] })"
        )
        box = opened.run("const box = map.getBoundingClientRect(); return [box.width, box.height]")
        total, area = sum(counts.values()), box[0] * box[1]
        assert len(tiles) == len(counts)
        for label, covered in tiles:
            count = int(label.rpartition(" misses, ")[0].rpartition(": ")[2].replace(",", ""))
            assert covered / area == pytest.approx(count / total, rel=0.02, abs=1e-4)
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways for"
        opened.run("document.querySelector('#map li').focus()")
        assert opened.run("return at.textContent") == tiles[0][0]
        opened.press("\ue014")  # arrow right
        assert opened.run("return [at.textContent, document.activeElement.tabIndex]") == [tiles[1][0], 0]
        assert opened.run("return document.title") == "Misses"
        assert opened.run("return performance.getEntriesByType('resource').length") == 0
        assert opened.complaints() == []
