"""The papers' results, to be shown next to measured ones."""

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
_GA_SAM_MAIN = "Zhang et al., GA-SAM, EMNLP 2022, Table 1: mean ± standard deviation of 4 runs"
_GA_SAM_ABLATION = (
    "Zhang et al., GA-SAM, EMNLP 2022, Tables 2 and 3: mean ± standard deviation of 4 runs"
)

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
        _GA_SAM_MAIN,
        {
            "Accuracy": {
                "baseline": "84.42 ± 0.12",
                "sam": "84.75 ± 0.31",
                "asam": "85.05 ± 0.22",
                "layer_sam": "85.27 ± 0.19",
                "multi_step_defense": "84.87 ± 0.15",
                "ga_sam": "86.11 ± 0.22",
            }
        },
    ),
    "textcnn_imdb_ablation": Published(
        _GA_SAM_ABLATION,
        {
            "Accuracy": {
                "baseline": "84.42 ± 0.12",
                "sam": "84.75 ± 0.31",
                "ga_sam": "86.11 ± 0.22",
                "multi_step_defense": "84.87 ± 0.15",
                "ga_sam_single": "85.86 ± 0.25",
                "ga_sam_element": "84.87 ± 0.14",
                "ga_sam_model": "85.32 ± 0.21",
                "ga_sam_weight_over_gradient": "85.82 ± 0.06",
                "ga_sam_inverse_gradient": "85.81 ± 0.23",
                "ga_sam_weight_strength": "85.06 ± 0.07",
                "ga_sam_weight": "85.42 ± 0.10",
                "ga_sam_k2": "85.83 ± 0.23",
                "ga_sam_k3": "84.97 ± 0.23",
                "ga_sam_k4": "77.55 ± 3.25",
                "ga_sam_k5": "70.49 ± 5.10",
                "ga_sam@2e-5": "84.91 ± 0.89",
                "ga_sam@5e-5": "85.54 ± 0.18",
                "ga_sam@8e-5": "85.63 ± 0.15",
                "ga_sam@2e-4": "85.74 ± 0.18",
                "ga_sam@5e-4": "65.96 ± 2.74",
                "ga_sam_l2@1e-3": "84.93 ± 0.27",
                "ga_sam_l2@5e-3": "85.11 ± 0.22",
                "ga_sam_l2@1e-2": "85.36 ± 0.26",
                "ga_sam_l2@5e-2": "85.62 ± 0.70",
                "ga_sam_l2@1e-1": "85.77 ± 0.11",
                "ga_sam_l2@5e-1": "64.14 ± 10.3",
            }
        },
    ),
    "textcnn_mr": Published(
        "Kim, EMNLP 2014, Table 2: CNN-rand, the mean of ten folds",
        {"Accuracy": {"baseline": "76.1"}},
    ),
    "lstm_ptb": Published(
        _GA_SAM_MAIN,
        {
            "Perplexity": {
                "baseline": "86.70 ± 0.54",
                "sam": "89.66 ± 0.25",
                "asam": "90.08 ± 0.24",
                "layer_sam": "89.82 ± 0.10",
                "multi_step_defense": "84.74 ± 0.42",
                "ga_sam": "84.52 ± 0.26",
            }
        },
    ),
    "lstm_ptb_ablation": Published(
        _GA_SAM_ABLATION,
        {
            "Perplexity": {
                "baseline": "86.70 ± 0.54",
                "sam": "89.66 ± 0.25",
                "ga_sam": "84.52 ± 0.26",
                "multi_step_defense": "84.74 ± 0.42",
                "ga_sam_single": "89.97 ± 0.27",
                "ga_sam_element": "84.69 ± 0.38",
                "ga_sam_model": "84.55 ± 0.39",
                "ga_sam_weight_over_gradient": "84.58 ± 0.27",
                "ga_sam_inverse_gradient": "84.90 ± 0.32",
                "ga_sam_weight_strength": "85.04 ± 0.15",
                "ga_sam_weight": "85.03 ± 0.57",
                "ga_sam_k2": "84.48 ± 0.52",
                "ga_sam_k3": "84.14 ± 0.29",
                "ga_sam_k4": "84.05 ± 0.23",
                "ga_sam_k5": "84.59 ± 0.36",
                "ga_sam@2e-6": "85.12 ± 0.55",
                "ga_sam@5e-6": "85.19 ± 0.86",
                "ga_sam@1e-5": "85.06 ± 0.51",
                "ga_sam@2e-5": "85.20 ± 0.94",
                "ga_sam@5e-5": "85.87 ± 1.19",
                "ga_sam_l2@1e-4": "85.24 ± 0.40",
                "ga_sam_l2@5e-4": "84.90 ± 0.09",
                "ga_sam_l2@1e-3": "84.91 ± 0.17",
                "ga_sam_l2@5e-3": "84.69 ± 0.40",
                "ga_sam_l2@1e-2": "85.38 ± 0.41",
                "ga_sam_l2@5e-2": "507.0 ± 243",
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
            f"Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 1, {_GLUE_MODELS[_model]}: "
            "best of 5 runs; SMART's RTE, MRPC and STS-B are of a model trained on MNLI before",
            {_metric: {name: row.split()[_column] for name, row in _rows.items()}},
        )

_STS = ["STS average", "STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"]
_STS_ROWS = {
    "bert": {
        "baseline": "74.85 67.87 80.98 71.84 81.58 74.41 77.78 69.53",
        "free_lb": "75.71 69.78 80.81 72.87 82.55 74.77 79.01 70.40",
        "r3f": "75.27 68.58 80.93 72.51 81.97 75.47 77.62 69.79",
        "sam": "75.50 68.37 82.16 72.88 82.22 74.71 77.98 70.20",
        "delta_sam": "75.72 68.44 82.30 73.12 82.27 75.12 78.83 69.94",
        "sam_noise": "76.44 70.09 83.53 74.22 82.67 77.61 80.16 66.81",
        "delta_sam_noise": "76.71 69.73 83.73 74.58 83.01 77.72 79.08 69.11",
    },
    "roberta": {
        "baseline": "74.98 64.49 81.69 73.32 79.78 77.49 78.53 69.56",
        "free_lb": "75.73 65.52 82.41 74.00 80.72 78.60 79.06 69.81",
        "r3f": "75.32 64.58 82.12 73.62 80.27 77.90 78.66 70.13",
        "sam": "75.18 64.86 81.96 73.56 79.82 77.06 78.83 70.21",
        "delta_sam": "75.27 64.97 81.89 73.46 80.12 77.62 78.96 69.89",
        "sam_noise": "75.90 66.65 82.52 74.10 80.81 78.47 79.02 69.71",
        "delta_sam_noise": "76.31 66.94 82.86 74.46 81.13 78.91 79.52 70.32",
    },
}
_STS_MODELS = {"bert": "Mirror-BERT-base", "roberta": "Mirror-RoBERTa-base"}

for _model, _rows in _STS_ROWS.items():
    PUBLISHED[f"mirror_{_model}_sts"] = Published(
        f"Zhou et al., δ-SAM, Findings of EMNLP 2022, Table 2, {_STS_MODELS[_model]}: "
        "mean of 5 runs",
        {
            metric: {name: row.split()[column] for name, row in _rows.items()}
            for column, metric in enumerate(_STS)
        },
    )
