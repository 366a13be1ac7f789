"""A page with a treemap of misses: one file, nothing from elsewhere, every name escaped.

The rectangles are laid out here (squarified: Bruls, Huizing, van Wijk 2000), so that the page needs no script to be
read; a few lines of ours show what is below the pointer.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from mkmeta.demand.cover import Cover, top_of
from mkmeta.errors import printable

_WIDTH, _HEIGHT = 1200.0, 640.0
_TILES_MAX: Final = 2000  # more are too small to be seen
_LABEL: Final = 60.0  # pixels: narrower tiles have no name on them

_STYLE: Final = """
body { font: 14px system-ui, sans-serif; margin: 24px; color: #222; max-width: 1200px }
h1 { font-size: 20px } svg { width: 100%; border: 1px solid #bbb } rect { stroke: #fff }
.chosen { fill: #3b7a57 } .left { fill: #b5533c } text { font-size: 11px; fill: #fff; pointer-events: none }
rect:hover { opacity: .75 } table { border-collapse: collapse; margin-top: 16px }
td, th { padding: 3px 12px 3px 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } #at { min-height: 1.4em; font-family: monospace }
.key { display: inline-block; width: 12px; height: 12px; margin: 0 4px 0 12px }
"""
_SCRIPT: Final = """
const at = document.getElementById("at");
document.querySelector("svg").addEventListener("mouseover", event => {
  const title = event.target.querySelector && event.target.querySelector("title");
  at.textContent = title ? title.textContent : "";
});
"""


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
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>{cover.misses:,} misses; {cover.gain:,} of them ({share:.1%}) are answered by {len(cover.chosen):,} "
        f"directories with {cover.cost:,} inodes."
        "<span class='key' style='background:#3b7a57'></span>selected"
        "<span class='key' style='background:#b5533c'></span>not selected</p><p id=at>&nbsp;</p>",
        f"<svg viewBox='0 0 {_WIDTH:.0f} {_HEIGHT:.0f}' role=img aria-label='misses by directory'>",
        *_rectangles(shown),
        "</svg>",
    ]
    if rest:
        parts.append(
            f"<p>{len(rest):,} smaller directories, {sum(t.misses for t in rest):,} misses, are not drawn.</p>"
        )
    parts.append("<table><tr><th>selected<th>misses<th>inodes")
    parts += (f"<tr><td>{_text(c.path)}<td class=n>{c.gain:,}<td class=n>{c.cost:,}" for c in cover.chosen[:200])
    parts.append("</table><table><tr><th>not selected<th>misses<th>why")
    parts += (
        f"<tr><td>{_text(one.path)}<td class=n>{one.misses:,}<td>{html.escape(one.why)}" for one in cover.left[:200]
    )
    parts.append(f"</table><script>{_SCRIPT}</script></html>\n")
    return "\n".join(parts)


def _text(path: bytes) -> str:
    return html.escape(printable(path) or "(the root)")


def _rectangles(tiles: Sequence[Tile]) -> Iterator[str]:
    for tile, (x, y, width, height) in zip(
        tiles, squarified([tile.misses for tile in tiles], _WIDTH, _HEIGHT), strict=True
    ):
        name = _text(tile.path)
        kind, word = ("left", "not selected") if tile.chosen is None else ("chosen", "selected")
        yield (
            f"<rect class={kind} x={x:.1f} y={y:.1f} width={width:.1f} height={height:.1f}>"
            f"<title>{name}: {tile.misses:,} misses, {word}</title></rect>"
        )
        if width >= _LABEL and height >= 16:
            last = _text(tile.path[-int(width // 7) :])
            yield f"<text x={x + 4:.1f} y={y + 13:.1f}>{last}</text>"


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
