"""Markdown from text that others wrote: it is shown as it is, whatever Markdown or HTML would make of it."""

import re
from collections.abc import Iterable, Sequence


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without the columns that are empty; nothing where there are no rows."""
    rows = list(rows)
    if not rows:
        return ""
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [header, ["---"] * len(header), *([cell or "–" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line[i] for i in used)} |" for line in lines)


def harmless(text: str) -> str:
    """Text in one line that Markdown and HTML show as it is."""
    text = re.sub(r"\s+", " ", text).strip()
    return _escape(text)


def quote(text: str) -> str:
    """Text as a block quote that shows it as it is, line by line."""
    lines = [_escape(line).rstrip() for line in text.replace("\r\n", "\n").expandtabs(4).split("\n")]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    lines = ["&nbsp;" * indent + line[indent:] for line, indent in zip(lines, indents, strict=True)]
    # A backslash at the end of a line keeps the line's end; a paragraph needs none.
    ends = ["\\" if line and following else "" for line, following in zip(lines, [*lines[1:], ""], strict=True)]
    quoted = [f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True)]
    return "\n".join(quoted) if text.strip() else "> *(empty)*"


def code(text: str) -> str:
    """Text as a code span."""
    text = text.replace("\r", r"\r").replace("\n", r"\n")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}"


def _escape(line: str) -> str:
    line = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", line)
    line = re.sub(r"[\\`*_\[\]#|~]|(?<=:)//|(?<=www)\.", r"\\\g<0>", line)
    line = re.sub(r"[&<>$@]", lambda found: f"&#{ord(found[0])};", line)
    # What begins a list or underlines a heading does so at the beginning of a line alone.
    return re.sub(r"^(\s*(?:\d+(?=[.)]))?)([-+=.)])", r"\1\\\2", line)
