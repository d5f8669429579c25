"""``python -m fairseq_sam.experiments NAME [OPTIONS]``: what the scripts hand over to."""

import os
import sys

from fairseq_sam.experiments import ablation, conduct
from fairseq_sam.experiments.recipes import recipe_of


def main() -> int:
    """Runs what is named; returns the exit status."""
    name, *arguments = sys.argv[1:] or [""]
    # The script, with the options that choose an environment: what repeats a job needs them too.
    program = os.environ.get("FAIRSEQ_SAM_PROGRAM", f"bash scripts/{name}.sh")
    if name == "ablation":
        return ablation.main(program, arguments)
    return conduct.main(recipe_of(name), program, arguments)


if __name__ == "__main__":
    sys.exit(main())
