"""Every Python block of the README and of docs/ runs, from the top of its page to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The fenced blocks of a page that are Python: line of each, and its text."""
    return [
        (token.map[0] + 1, token.content)
        for token in MarkdownIt().parse(page.read_text())
        if token.type == "fence" and token.info == "python" and token.map is not None
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what they write
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        for line, text in blocks(page):
            # Blank lines before it make errors name the page's own lines.
            exec(compile("\n" * line + text, str(page), "exec"), namespace)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def test_blocks_are_found() -> None:
    assert len(blocks(ROOT / "README.md")) >= 1
    assert all("```" not in text for page in PAGES for _, text in blocks(page))
