"""One file per table of a paper. To add one, write a class and name its module here."""

from __future__ import annotations

import importlib
from typing import Dict, Iterator

from fairseq_sam.experiments.errors import MisuseError
from fairseq_sam.experiments.recipe import Recipe
from fairseq_sam.reporting.scores import Published

NAMES = (
    *("iwslt14_de_en", "iwslt15_en_vi", "textcnn_imdb", "lstm_ptb", "glue", "bart_cnn_dm"),
    *("mirror_bert", "adversarial_risk", "quickstart", "evidence"),
)


def recipe_of(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        MisuseError: there is none by that name.
    """
    if name not in NAMES:
        raise MisuseError(f"there is no recipe {name}: choose from {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{name}")
    recipe: Recipe = module.RECIPE
    return recipe


def published() -> Dict[str, Published]:
    """Returns the figures of all papers by the name that ``fairseq-sam report --paper`` takes."""
    return {key: value for recipe in _all() for key, value in recipe.published.items()}


def _all() -> Iterator[Recipe]:
    return map(recipe_of, NAMES)
