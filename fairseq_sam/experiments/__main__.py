"""``python -m fairseq_sam.experiments NAME [OPTIONS]``: what the scripts hand over to."""

import sys

from fairseq_sam.experiments import ablation, conduct
from fairseq_sam.experiments.recipes import recipe_of


def main() -> int:
    """Runs what is named; returns the exit status."""
    name, *arguments = sys.argv[1:] or [""]
    program = f"bash scripts/{name}.sh"
    if name == "ablation":
        return ablation.main(program, arguments)
    return conduct.main(recipe_of(name), program, arguments)


if __name__ == "__main__":
    sys.exit(main())
