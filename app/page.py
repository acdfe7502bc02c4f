"""The pieces that the report is made of: tables, figures, cells, and the page around them.

``text, numbers ─▶ HTML ─▶ ranker_report, report``. It knows the shape of estimates and differences, and what is said
about sessions beside them, but not what any section is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from app.wording import interval_text, number, reminder, session_sentence, verdict


def write_page(title: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """Write the whole page.

    Parameters
    ----------
    title : str
        Text.
    sections : iterable of (str, str, str)
        Anchor and heading, which are text, and content, which is HTML; those without content are left out.
    """
    written = [(escape(anchor), escape(heading), content) for anchor, heading, content in sections if content]
    links = " · ".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in written)
    body = "\n".join(
        f'<section id="{anchor}"><h2>{heading}</h2>\n{content}</section>' for anchor, heading, content in written
    )
    return _PAGE.format(title=escape(title), style=_STYLE, links=links, body=body)


def write_session(metrics: Mapping[str, Any], protocol: str) -> str:
    return f'<p class="session">{escape(session_sentence(metrics, protocol))}</p>'


def write_caption(metrics: Mapping[str, Any], protocol: str, title: str) -> str:
    return f"{escape(title)}. {reminder(metrics, protocol)}"


def write_estimate(value: float, interval: Sequence[float] | None) -> str:
    """Write a value and its interval; an empty interval says that the value is no mean over users."""
    beside = "" if interval == () else f" <small>{interval_text(interval)}</small>"
    return number(value) + beside


def write_difference(found: Mapping[str, Any]) -> str:
    interval = found["interval"]
    return (
        f"{number(found['difference'], '+')} <small>{interval_text(interval)}</small><small>{verdict(interval)}</small>"
    )


def write_figure(svg: str, *captions: str) -> str:
    return f"<figure>{svg}<figcaption>{' '.join(captions)}</figcaption></figure>"


def write_details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def write_table(header: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Write a table; the header and the first cell of each row are text, the other cells HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


_STYLE = """
:root { color-scheme: light dark; --soft: #5b5b5b; --line: #ddd; --tint: #fff6df; }
@media (prefers-color-scheme: dark) { :root { --soft: #a8a8a8; --line: #444; --tint: #3a3017; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
small, figcaption { color: var(--soft); font-size: .85em; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td small { display: block; white-space: nowrap; }
thead th { font-weight: 600; }
tbody th { font-weight: 400; }
tr > :first-child { position: sticky; left: 0; background: Canvas; }
figcaption { margin-top: .4rem; }
figure { margin: 1rem 0; max-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; box-sizing: border-box; padding: .5rem; background: #fff;
  border: 1px solid var(--line); border-radius: .5rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
summary { cursor: pointer; }
pre { overflow-x: auto; white-space: pre-wrap; padding: .8rem; border: 1px solid var(--line); border-radius: .5rem; }
.notice, .session { background: var(--tint); padding: .6rem .8rem; border-radius: .5rem; }
.headline { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.headline dd { margin: 0; font-size: 1.3rem; }
.headline small { font-size: .85rem; }
dl:not(.headline) dt { font-weight: 600; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
</body>
</html>
"""
