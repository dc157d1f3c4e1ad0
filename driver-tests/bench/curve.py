"""The curve of `diff` as an SVG: milliseconds over the number of files, a line for each number of changes, a panel for each
filesystem, both axes logarithmic.
"""

import math
from xml.sax.saxutils import escape

PANEL, HEIGHT, LEFT, TOP, BOTTOM, GAP, LEGEND = 300, 260, 60, 46, 44, 70, 34
COLOURS = ("#1b6ca8", "#2a9d4a", "#d1731c", "#8a4fa3", "#b3263a")


def decades(values):
    """The powers of ten that hold all VALUES between them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0 ** power for power in range(low, max(high, low + 1) + 1)]


def short(value):
    """As a label of an axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


class Axes:
    """Places of values in a panel whose left edge is at LEFT."""

    def __init__(self, left, xs, ys):
        self.left, self.xs, self.ys = left, xs, ys

    @staticmethod
    def _share(value, ticks):
        return math.log10(value / ticks[0]) / math.log10(ticks[-1] / ticks[0])

    def x(self, value):
        return self.left + PANEL * self._share(value, self.xs)

    def y(self, value):
        return TOP + HEIGHT * (1 - self._share(value, self.ys))


def text(x, y, words, anchor="middle", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def line(axes, points, field, colour, dashed):
    places = " ".join(f"{axes.x(point['files']):.1f},{axes.y(point[field]):.1f}" for point in points)
    style = ' stroke-dasharray="5 4"' if dashed else ""
    marks = "".join(f'<circle cx="{axes.x(p["files"]):.1f}" cy="{axes.y(p[field]):.1f}" r="2.5" fill="{colour}"/>'
                    for p in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.6"{style}/>{marks}'


def panel(axes, title, points):
    parts = [text(axes.left + PANEL / 2, TOP - 14, title, extra=' font-weight="bold"')]
    for tick in axes.xs:
        x = axes.x(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + HEIGHT}" stroke="#ddd"/>')
        parts.append(text(x, TOP + HEIGHT + 16, short(tick)))
    for tick in axes.ys:
        y = axes.y(tick)
        parts.append(f'<line x1="{axes.left}" y1="{y:.1f}" x2="{axes.left + PANEL}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(axes.left - 6, y + 4, short(tick), "end"))
    parts.append(text(axes.left + PANEL / 2, TOP + HEIGHT + 34, "files in the container"))
    for colour, count in zip(COLOURS, sorted({point["changes"] for point in points})):
        series = sorted((point for point in points if point["changes"] == count), key=lambda point: point["files"])
        parts.append(line(axes, series, "ours_ms", colour, dashed=False))
        walked = [point for point in series if point["walk_ms"]]
        if walked:
            parts.append(line(axes, walked, "walk_ms", colour, dashed=True))
    return "\n".join(parts)


def drawn(panels):
    """The SVG of PANELS, {title: points}, with the points of changes.curve."""
    everything = [point for points in panels.values() for point in points]
    xs = decades([point["files"] for point in everything])
    ys = decades([point[field] for point in everything for field in ("ours_ms", "walk_ms") if point[field]])
    width = LEFT + len(panels) * (PANEL + GAP) - GAP + 36
    height = TOP + HEIGHT + BOTTOM + LEGEND
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
             "<title>Time of diff by files and changes</title>",
             f'<rect width="{width}" height="{height}" fill="white"/>',
             text(16, TOP + HEIGHT / 2, "ms", extra=f' transform="rotate(-90 16 {TOP + HEIGHT / 2})"')]
    for number, (title, points) in enumerate(panels.items()):
        parts.append(panel(Axes(LEFT + number * (PANEL + GAP), xs, ys), title, points))
    x, y = LEFT, height - 12
    for colour, count in zip(COLOURS, sorted({point["changes"] for point in everything})):
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(text(x + 27, y, f"{count:,} changed", "start"))
        x += 140
    parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" stroke="#555" stroke-dasharray="5 4"/>')
    parts.append(text(x + 27, y, "the walk of both trees", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"
