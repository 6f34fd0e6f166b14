"""Checks that every relative link and every repository path named in the documents exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:sandboxrt|tests|benchmarks|docs|tools)/[\w./-]*)`")


def dangling(document: Path) -> list[str]:
    """The names in ``document`` that lead nowhere."""
    text = document.read_text(encoding="utf-8")
    links = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    missing = [target for target in links if not (document.parent / target).exists()]
    missing += [target for target in PATH.findall(text) if not (ROOT / target).exists()]
    return missing


def main() -> int:
    """Print what is dangling; the exit code says whether anything is."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    problems = [(document, name) for document in documents for name in dangling(document)]
    for document, name in problems:
        print(f"{document.relative_to(ROOT)}: {name} does not exist", file=sys.stderr)
    print(f"{len(documents)} documents, {len(problems)} dangling names")
    return 1 if problems or not documents else 0


if __name__ == "__main__":
    sys.exit(main())
