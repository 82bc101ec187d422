"""`python -m fusion.patterns.ops [file]`: the operator table as a Markdown page, to a file or the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from .document import page

if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(page())
else:
    sys.stdout.write(page())
