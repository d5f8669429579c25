"""The matrix of .github/workflows/checks.yml on one machine.

pip install nox; then `nox -l` lists it, `nox` runs all, `nox -s checks-3.11 -- --only tests` a part
(what stands after -- goes to scripts/test.sh). A Python that is not installed is skipped. The
environments, in .nox, are kept from run to run.
"""

import nox

MATRIX = {
    "3.8": "0.12.2",
    "3.10": "main",
    "3.11": "fixed",
    "3.12": "fixed",
    "3.13": "fixed",
}
"""The fairseq that each Python is tested with; scripts/test.sh chooses the releases by itself."""

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=list(MATRIX))
def checks(session: nox.Session) -> None:
    """Runs every check of the project."""
    environment = session.virtualenv.location
    if MATRIX[str(session.python)] == "main":
        session.run(".ci/fairseq_main", environment, external=True)
    session.run(".ci/run", "--venv", environment, *session.posargs, external=True)
