"""The papers' results, to be shown beside measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from fairseq_sam.reporting.scores import TOKENISED_BLEU


@dataclass(frozen=True)
class Published:
    """One experiment of a paper.

    Attributes:
        source: the paper, its table, and what is to be known of the comparison.
        metrics: metric to {run to value as printed}; the runs in the paper's order.
    """

    source: str
    metrics: Dict[str, Dict[str, str]]


_GA_SAM = "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 5: mean ± standard deviation of 4 runs"

PUBLISHED: Dict[str, Published] = {
    "iwslt14_de_en": Published(
        _GA_SAM,
        {
            TOKENISED_BLEU: {
                "baseline": "35.41 ± 0.13",
                "sam": "35.61 ± 0.18",
                "asam": "35.56 ± 0.17",
                "layer_sam": "35.78 ± 0.08",
                "multi_step_defense": "35.86 ± 0.13",
                "ga_sam": "35.95 ± 0.15",
                "free_lb": "35.49 ± 0.11",
            }
        },
    ),
    "iwslt15_en_vi": Published(
        _GA_SAM,
        {
            TOKENISED_BLEU: {
                "baseline": "30.60 ± 0.21",
                "sam": "30.79 ± 0.15",
                "asam": "30.81 ± 0.24",
                "layer_sam": "30.70 ± 0.27",
                "multi_step_defense": "30.95 ± 0.12",
                "ga_sam": "31.15 ± 0.29",
                "free_lb": "30.91 ± 0.09",
            }
        },
    ),
    "bart_cnn_dm": Published(
        "Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 3; its ROUGE-L is our ROUGE-Lsum",
        {
            "ROUGE-1": {
                "baseline": "44.16",
                "r3f": "44.38",
                "r_drop": "44.51",
                "delta_sam": "44.70",
            },
            "ROUGE-2": {
                "baseline": "21.28",
                "r3f": "21.53",
                "r_drop": "21.58",
                "delta_sam": "21.54",
            },
            "ROUGE-Lsum": {
                "baseline": "40.90",
                "r3f": "41.17",
                "r_drop": "41.24",
                "delta_sam": "41.81",
            },
        },
    ),
    "textcnn_imdb": Published(
        "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 2: means of 4 runs",
        {
            "Accuracy": {
                "baseline": "84.42",
                "sam": "84.75",
                "asam": "85.05",
                "layer_sam": "85.27",
                "multi_step_defense": "84.87",
                "ga_sam": "86.11",
            }
        },
    ),
    "textcnn_imdb_ablation": Published(
        "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 2: means of 4 runs",
        {
            "Accuracy": {
                "baseline": "84.42",
                "ga_sam": "86.11",
                "ga_sam_single": "85.86",
                "ga_sam_element": "84.87",
                "ga_sam_model": "85.32",
                "ga_sam_weight_over_gradient": "85.82",
                "ga_sam_inverse_gradient": "85.81",
                "ga_sam_weight_strength": "85.06",
                "ga_sam_weight": "85.42",
            }
        },
    ),
    "textcnn_mr": Published(
        "Kim, EMNLP 2014, Table 2: CNN-rand, the mean of ten folds",
        {"Accuracy": {"baseline": "76.1"}},
    ),
    "lstm_ptb": Published(
        "Zhang et al., GA-SAM, EMNLP 2022, Table 1: means of 4 runs",
        {
            "Perplexity": {
                "baseline": "86.70",
                "sam": "89.66",
                "asam": "90.08",
                "layer_sam": "89.82",
                "multi_step_defense": "84.74",
                "ga_sam": "84.52",
            }
        },
    ),
    "lstm_ptb_ablation": Published(
        "Zhang et al., GA-SAM, EMNLP 2022, Tables 1 and 2: means of 4 runs",
        {
            "Perplexity": {
                "baseline": "86.70",
                "ga_sam": "84.52",
                "ga_sam_single": "89.97",
                "ga_sam_element": "84.69",
                "ga_sam_model": "84.55",
                "ga_sam_weight_over_gradient": "84.58",
                "ga_sam_inverse_gradient": "84.90",
                "ga_sam_weight_strength": "85.04",
                "ga_sam_weight": "85.03",
            }
        },
    ),
}
"""By the name that ``fairseq-sam report --paper`` knows an experiment by."""

_GLUE = {
    "MNLI": "Accuracy",
    "QQP": "Accuracy",
    "RTE": "Accuracy",
    "QNLI": "Accuracy",
    "MRPC": "Accuracy",
    "CoLA": "Matthews",
    "SST-2": "Accuracy",
    "STS-B": "Pearson",
}
_GLUE_ROWS = {
    "bert": {
        "baseline": "83.8 91.0 68.2 90.8 85.3 62.3 92.4 89.3",
        "r_drop": "85.5 91.4 71.1 92.0 87.3 62.6 93.0 89.6",
        "sam": "85.0 91.6 69.3 91.7 88.2 63.1 93.0 89.4",
        "delta_sam": "85.2 91.7 72.2 91.5 89.5 63.8 93.7 89.7",
    },
    "roberta": {
        "baseline": "90.2 92.2 86.6 94.7 90.9 68.0 96.4 92.4",
        "r_drop": "90.9 92.5 88.4 95.2 91.4 70.0 96.9 92.5",
        "free_lb": "90.6 92.6 88.1 95.0 91.4 71.1 96.7 92.7",
        "smart": "91.1 92.4 92.0 95.6 89.2 70.6 96.9 92.8",
        "r3f": "91.1 92.4 88.5 95.3 91.6 71.2 97.0 –",
        "sam": "91.0 92.3 88.5 95.0 91.4 69.2 96.7 92.4",
        "delta_sam": "91.1 92.5 89.2 95.1 92.2 71.1 96.9 92.7",
    },
}
_GLUE_MODELS = {"bert": "BERT-base", "roberta": "RoBERTa-large"}

for _model, _rows in _GLUE_ROWS.items():
    for _column, (_task, _metric) in enumerate(_GLUE.items()):
        PUBLISHED[f"glue_{_task.replace('-', '')}_{_model}"] = Published(
            f"Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 1, {_GLUE_MODELS[_model]}; SMART's "
            "RTE, MRPC and STS-B are of a model that had been trained on MNLI before",
            {_metric: {name: row.split()[_column] for name, row in _rows.items()}},
        )
