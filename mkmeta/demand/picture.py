"""A page with a treemap of misses: one file, nothing from elsewhere, every name escaped.

The rectangles are laid out here (squarified: Bruls, Huizing, van Wijk 2000), in parts of the whole, so that the page
needs no script to be read, on a screen of any width; a few lines of ours tell of what is pointed at, and take the
arrow keys. They are the only script that may run: the page's policy names their digest.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from mkmeta.demand.cover import Cover, top_of
from mkmeta.errors import printable

_WIDTH, _HEIGHT = 1200.0, 640.0  # what the shape of rectangles is best for, pixels
_TILES_MAX: Final = 2000  # more are too small to be seen
_ROWS_MAX: Final = 200  # of each table
_NAME_MAX: Final = 200  # characters of a path on a tile: the end
_GROUP: Final = 2  # directories whose paths begin with as many equal names lie together

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1d2126; --dim: #5a636e; --page: #fff; --line: #d5dae0; --yes: #1b7554;
  --no: #ad4326 }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --dim: #a3acb8; --page: #16191d; --line: #3a414a } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 20px; color: var(--text);
  background: var(--page); max-width: 1280px }
h1 { font-size: 21px; margin: 0 0 10px } h2 { font-size: 17px; margin: 26px 0 6px } p { margin: 8px 0 }
.figures { display: flex; flex-wrap: wrap; gap: 4px 32px; margin: 0 }
.figures div { display: flex; flex-direction: column-reverse } .figures dt { color: var(--dim); font-size: 13px }
.figures dd { margin: 0; font-size: 25px; font-weight: 600; font-variant-numeric: tabular-nums }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px }
.key span::before { content: ""; display: inline-block; width: 12px; height: 12px; margin-right: 6px }
.key .s::before, #map .s { background: var(--yes) }
.key .n::before, #map .n { background: repeating-linear-gradient(135deg, #0000 0 7px, #0003 7px 9px) var(--no) }
#map { position: relative; height: min(640px, 62vh); min-height: 380px; margin: 0; padding: 0; list-style: none }
#map li { position: absolute; left: var(--x); top: var(--y); width: var(--w); height: var(--h); overflow: hidden;
  border: 1px solid var(--page); color: #fff; font-size: 12px; line-height: 1.3; container-type: size }
#map li.first { border-left-width: 3px; border-top-width: 3px }
#map li:hover, #map li:focus { outline: 3px solid var(--text); outline-offset: -3px; z-index: 1 }
#map div { padding: 2px 5px; white-space: nowrap; text-shadow: 0 0 2px #0009 }
#map b, #map i { display: block; font-style: normal; overflow: hidden; text-overflow: ellipsis }
@media (max-width: 700px) {  /* on its side */
  #map { height: 180vw; max-height: none }
  #map li { left: var(--y); top: var(--x); width: var(--h); height: var(--w); font-size: 11px }
  #map div { padding: 1px 4px }
}
@container (width < 46px) or (height < 20px) { #map div { display: none } }
@container (height < 36px) { #map i { display: none } }
@container (height < 52px) { #map b ~ i ~ i, #map bdi:has(b + i) + i { display: none } }
#at { min-height: 2.9em; margin: 4px 0; font-size: 13px; overflow-wrap: anywhere }
.table { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 14px }
th { color: var(--dim); font-weight: 500; font-size: 13px } tr { border-bottom: 1px solid var(--line) }
td, th { padding: 4px 14px 4px 0; text-align: left; vertical-align: top; overflow-wrap: anywhere }
.c { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; overflow-wrap: normal }
"""
_SCRIPT: Final = """
"use strict";
const map = document.getElementById("map"), at = document.getElementById("at"), tiles = [...map.children];
const tell = event => { const tile = event.target.closest("li"); if (tile) at.textContent = tile.ariaLabel; };
map.addEventListener("mouseover", tell);
map.addEventListener("focusin", tell);
map.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 }[event.key];
  const here = tiles.indexOf(document.activeElement);
  if (step === undefined || here < 0) return;
  event.preventDefault();
  const next = tiles[Math.max(0, Math.min(tiles.length - 1, here + step))];
  tiles[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
"""
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
)


class Tile(NamedTuple):
    """A directory in the picture."""

    path: bytes
    misses: int
    chosen: bytes | None  # what selects it


def page(cover: Cover, misses: Mapping[bytes, int], title: str) -> str:
    """The page, for what was chosen and the misses of all directories."""
    chosen = {choice.path for choice in cover.chosen}
    tiles = [Tile(path, count, top_of(path, chosen)) for path, count in misses.items() if count]
    tiles.sort(key=lambda tile: (-tile.misses, tile.path))
    shown, rest = tiles[:_TILES_MAX], tiles[_TILES_MAX:]
    share = cover.gain / cover.misses if cover.misses else 0.0
    figures = {
        "of the misses are answered": f"{share:.1%}",
        "misses": f"{cover.misses:,}",
        "misses stay": f"{cover.misses - cover.gain:,}",
        "directories are selected": f"{len(cover.chosen):,}",
        "inodes is what they cost": f"{cover.cost:,}",
    }
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        '<dl class="figures">',
        *(f"<div><dt>{what}</dt><dd>{figure}</dd></div>" for what, figure in figures.items()),
        '</dl><p class="key"><span class="s">selected: answered by the layer</span>',
        '<span class="n">not selected: goes on to the server</span></p>',
        '<ul id="map" role="list" aria-label="Directories, as large as their misses">',
        *_rectangles(shown),
        '</ul><p id="at">Each rectangle is a directory, as large as its misses. Point at one, or use the arrow keys.',
    ]
    if rest:
        count = sum(tile.misses for tile in rest)
        parts.append(f"<p>{len(rest):,} smaller directories with {count:,} misses are not drawn.")
    parts += _table(
        "Selected, best first",
        ("directory", "misses saved", "of all", "inodes"),
        [
            (_text(one.path), f"{one.gain:,}", f"{one.gain / max(cover.misses, 1):.1%}", f"{one.cost:,}")
            for one in cover.chosen[:_ROWS_MAX]
        ],
        len(cover.chosen),
    )
    parts += _table(
        "Not selected, most misses first",
        ("directory", "misses", "why"),
        [(_text(one.path), f"{one.misses:,}", html.escape(one.why)) for one in cover.left[:_ROWS_MAX]],
        len(cover.left),
    )
    parts.append(f"<script>{_SCRIPT}</script></html>\n")
    return "\n".join(parts)


def _text(path: bytes) -> str:
    return f"<bdi>{html.escape(printable(path) or '(the root)')}</bdi>"


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> Iterator[str]:
    """A table, if there is something to be in it; its cells are markup. Columns of figures are the second and on."""
    if not rows:
        return
    yield f'<h2>{title}</h2><div class="table"><table><tr>'
    figures = [0 < place < len(names) - (names[-1] == "why") for place in range(len(names))]
    cell = ['<{0} class="c">{1}</{0}>' if figure else "<{0}>{1}</{0}>" for figure in figures]
    yield "".join(form.format('th scope="col"', name) for form, name in zip(cell, names, strict=True)) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(form.format("td", text) for form, text in zip(cell, row, strict=True)) + "</tr>"
    yield "</table></div>"
    if total > len(rows):
        yield f"<p>and {total - len(rows):,} more"


def _rectangles(tiles: Sequence[Tile]) -> Iterator[str]:
    """The tiles, in groups; each once, with its place in parts of the whole."""
    groups: dict[bytes, list[Tile]] = {}
    for tile in tiles:
        groups.setdefault(b"/".join(tile.path.split(b"/")[:_GROUP]), []).append(tile)
    ordered = sorted(groups.items(), key=lambda pair: (-sum(tile.misses for tile in pair[1]), pair[0]))
    sums = [sum(tile.misses for tile in members) for _, members in ordered]
    first = True
    for (group, members), (left, top, width, height) in zip(ordered, squarified(sums, _WIDTH, _HEIGHT), strict=True):
        inner = squarified([tile.misses for tile in members], width, height)
        for number, (tile, (x, y, wide, high)) in enumerate(zip(members, inner, strict=True)):
            name = printable(tile.path) or "(the root)"
            short = name if len(name) <= _NAME_MAX else "\N{HORIZONTAL ELLIPSIS}" + name[-_NAME_MAX:]
            kind, word = ("n", "not selected") if tile.chosen is None else ("s", "selected")
            said = html.escape(f"{short}: {tile.misses:,} misses, {word}")
            place = f"--x:{(left + x) / _WIDTH:.4%};--y:{(top + y) / _HEIGHT:.4%}"
            size = f"--w:{wide / _WIDTH:.4%};--h:{high / _HEIGHT:.4%}"
            label = short[len(printable(group)) :].lstrip("/") if name.startswith(printable(group)) else short
            head = f"<b>{html.escape(printable(group)[-_NAME_MAX:] or name)}</b>" if not number else ""
            yield (
                f'<li class="{kind}{"" if number else " first"}" style="{place};{size}" aria-label="{said}" '
                f'title="{said}" tabindex="{0 if first else -1}"><div><bdi>{head}{_line(label)}</bdi>'
                f"<i>{tile.misses:,}</i></div></li>"
            )
            first = False


def _line(label: str) -> str:
    return f"<i>{html.escape(label)}</i>" if label else ""


def squarified(sizes: Sequence[int], width: float, height: float) -> list[tuple[float, float, float, float]]:
    """Rectangles (x, y, width, height) that fill a rectangle, with areas as given, descending, and nearly square."""
    total = sum(sizes)
    if not total:
        return []
    areas = [size * width * height / total for size in sizes]
    found: list[tuple[float, float, float, float]] = []
    x = y = 0.0
    start = 0
    while start < len(areas):
        side = min(width, height)
        end, row = start + 1, areas[start]
        while end < len(areas):
            grown = row + areas[end]
            if _worst(areas[start], areas[end], grown, side) > _worst(areas[start], areas[end - 1], row, side):
                break
            end, row = end + 1, grown
        thick = row / side if side else 0.0
        at = 0.0
        for area in areas[start:end]:
            length = area / thick if thick else 0.0
            found.append((x, y + at, thick, length) if width >= height else (x + at, y, length, thick))
            at += length
        if width >= height:
            x, width = x + thick, max(width - thick, 0.0)
        else:
            y, height = y + thick, max(height - thick, 0.0)
        start = end
    return found


def _worst(largest: float, smallest: float, row: float, side: float) -> float:
    """The worst ratio of sides in a row."""
    if not side or not smallest:
        return float("inf")
    return max(side * side * largest / (row * row), row * row / (side * side * smallest))
