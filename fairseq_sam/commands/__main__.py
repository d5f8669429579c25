"""``python -m fairseq_sam.commands``: the same as the ``fairseq-sam`` script."""

from __future__ import annotations

import sys

from fairseq_sam.commands import main

if __name__ == "__main__":
    sys.exit(main())
