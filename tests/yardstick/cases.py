"""Configurations of fairseq that together use each of its models, tasks and criterions."""

from typing import Dict, List

from tests.yardstick import made_data
from tests.yardstick.runs import Case

ENCODER = (
    "--encoder-layers 1 --encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 2"
)
DECODER = (
    "--decoder-layers 1 --decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 2"
)
SMALL = f"{ENCODER} {DECODER} --dropout 0.1"
TRANSLATION = "--task translation -s de -t en"
TRANSFORMER = f"{TRANSLATION} --arch transformer {SMALL}"


def translation(name: str, flags: str, **others) -> Case:
    return Case(name, f"{TRANSLATION} {flags}", made_data.text_pairs, **others)


def transformer(name: str, flags: str = "", **others) -> Case:
    return Case(name, f"{TRANSFORMER} {flags}", made_data.text_pairs, **others)


def nat(arch: str, flags: str) -> Case:
    flags = f"--task translation_lev -s de -t en --arch {arch} {SMALL} --criterion nat_loss {flags}"
    return Case(arch, flags, made_data.text_pairs)


def language_model(name: str, flags: str) -> Case:
    flags = f"--task language_modeling --sample-break-mode eos {flags}"
    return Case(name, flags, made_data.text)


ROBERTA = f"--arch roberta {ENCODER} --dropout 0.1 --attention-dropout 0.1 --max-positions 64"


def roberta(name: str, flags: str) -> Case:
    return Case(name, f"{ROBERTA} {flags}", made_data.labelled_text)


DUMMY = "--dict-size 20 --dataset-size 16"
DUMMY_LM = f"--task dummy_lm {DUMMY} --tokens-per-sample 6"

CASES: List[Case] = [
    transformer("transformer"),
    transformer("accumulated", "--update-freq 2"),
    transformer("label_smoothing", "--criterion label_smoothed_cross_entropy"),
    transformer("sentence_avg", "--sentence-avg"),
    transformer("layerdrop", "--encoder-layerdrop 0.5 --decoder-layerdrop 0.5"),
    transformer("adaptive_softmax", "--criterion adaptive_loss --ddp-backend legacy_ddp --adaptive-softmax-cutoff 8,16"),
    transformer("tied", "--share-all-embeddings"),
    transformer("quant_noise_pq", "--quant-noise-pq 0.3 --quant-noise-pq-block-size 4"),
    transformer("quant_noise_scalar", "--quant-noise-scalar 0.3"),
    transformer("checkpoint_activations", "--checkpoint-activations"),
    transformer("offload_activations", "--offload-activations"),
    transformer("cross_self_attention", "--no-cross-attention --cross-self-attention"),
    transformer("activation_dropout", "--activation-dropout 0.2 --attention-dropout 0.2"),
    transformer("r_drop_of_fairseq", "--criterion label_smoothed_cross_entropy_with_rdrop"),
    transformer("ema", "--store-ema --ema-decay 0.9"),
    transformer("clip", "--clip-norm 0.1 --weight-decay 0.1"),
    translation(
        "transformer_align",
        f"--arch transformer_align {SMALL} --load-alignments --alignment-layer 0 "
        "--alignment-heads 1 --criterion label_smoothed_cross_entropy_with_alignment",
    ),
    translation(
        "fconv",
        "--arch fconv --encoder-layers '[(8,3)]' --decoder-layers '[(8,3)]' --encoder-embed-dim 8 "
        "--decoder-embed-dim 8 --decoder-out-embed-dim 8 --dropout 0.1",
    ),
    translation(
        "fconv_self_att",
        "--arch fconv_self_att --encoder-layers '[(8,3)]' --decoder-layers '[(8,3)]' "
        "--encoder-embed-dim 8 --decoder-embed-dim 8 --decoder-out-embed-dim 8 --dropout 0.1 "
        "--multihead-self-attention-nheads 2",
    ),
    translation(
        "lstm",
        "--arch lstm --encoder-layers 2 --encoder-bidirectional --encoder-hidden-size 8 "
        "--decoder-layers 2 --decoder-hidden-size 8 --encoder-embed-dim 8 --decoder-embed-dim 8 "
        "--decoder-out-embed-dim 8 --dropout 0.1",
    ),
    translation(
        "lightconv",
        f"--arch lightconv {SMALL} --encoder-conv-dim 8 --decoder-conv-dim 8 "
        "--encoder-conv-type lightweight --decoder-conv-type lightweight --weight-dropout 0.1 "
        "--encoder-kernel-size-list [3] --decoder-kernel-size-list [3]",
    ),
    translation(
        "dynamicconv",
        f"--arch lightconv {SMALL} --encoder-conv-dim 8 --decoder-conv-dim 8 "
        "--encoder-conv-type dynamic --decoder-conv-type dynamic --weight-dropout 0.1 "
        "--encoder-kernel-size-list [3] --decoder-kernel-size-list [3]",
    ),
    nat("nonautoregressive_transformer", "--noise full_mask --src-embedding-copy --apply-bert-init"),
    nat("cmlm_transformer", "--noise random_mask --pred-length-offset --length-loss-factor 0.1"),
    nat("levenshtein_transformer", "--noise random_delete"),
    nat("insertion_transformer", "--noise random_delete"),
    nat(
        "iterative_nonautoregressive_transformer",
        "--noise full_mask --stochastic-approx --dae-ratio 0.5 --train-step 2",
    ),
    nat("nacrf_transformer", "--noise full_mask --crf-lowrank-approx 2 --crf-beam-approx 4"),
    Case(
        "multilingual_translation",
        "--task multilingual_translation --lang-pairs de-en,en-de --arch multilingual_transformer "
        f"{SMALL} --share-encoders",
        made_data.many_languages,
    ),
    Case(
        "translation_multi_simple_epoch",
        "--task translation_multi_simple_epoch --lang-pairs de-en,en-de --arch transformer "
        f"{SMALL} --encoder-langtok src --decoder-langtok",
        made_data.many_languages,
    ),
    Case(
        "semisupervised_translation",
        "--task semisupervised_translation --lang-pairs de-en,en-de --arch multilingual_transformer"
        f" {SMALL} --lambda-parallel-config 0.7 --lambda-denoising-config 0.5 --share-encoders",
        made_data.many_languages,
    ),
    Case(
        "semisupervised_translation_back",
        "--task semisupervised_translation --lang-pairs de-en,en-de --arch multilingual_transformer"
        f" {SMALL} --lambda-parallel-config 0.7 --lambda-otf-bt-config 0.5 --share-encoders",
        made_data.many_languages,
    ),
    Case(
        "online_backtranslation",
        "--task online_backtranslation --mono-langs de,en --valid-lang-pairs de-en "
        f"--arch transformer {SMALL} --share-all-embeddings --lambda-bt 0.7 --lambda-dae 0.3",
        made_data.text_to_translate_back,
    ),
    Case(
        "translation_from_pretrained_bart",
        "--task translation_from_pretrained_bart -s de -t en --langs de,en --arch transformer "
        f"{SMALL}",
        made_data.text_pairs,
    ),
    language_model("transformer_lm", f"--arch transformer_lm {DECODER} --dropout 0.1"),
    language_model(
        "adaptive_lm",
        f"--arch transformer_lm {DECODER} --dropout 0.1 --criterion adaptive_loss --ddp-backend legacy_ddp "
        "--adaptive-softmax-cutoff 8,16 --adaptive-input --adaptive-input-cutoff 8,16 "
        "--tie-adaptive-weights",
    ),
    language_model(
        "normformer",
        f"--arch transformer_lm {DECODER} --scale-fc --scale-heads --scale-attn --dropout 0.1",
    ),
    language_model("fconv_lm", "--arch fconv_lm --decoder-layers '[(8,3)]' --decoder-embed-dim 8"),
    language_model(
        "lstm_lm",
        "--arch lstm_lm --decoder-layers 2 --decoder-hidden-size 8 --decoder-embed-dim 8 "
        "--decoder-out-embed-dim 8 --residuals --dropout 0.1",
    ),
    language_model(
        "lightconv_lm",
        f"--arch lightconv_lm {DECODER} --decoder-conv-dim 8 --decoder-kernel-size-list [3]",
    ),
    Case(
        "masked_lm", f"--task masked_lm --criterion masked_lm {ROBERTA}", made_data.text
    ),
    Case(
        "multilingual_masked_lm",
        f"--task multilingual_masked_lm --criterion masked_lm {ROBERTA}",
        made_data.text_of_languages,
    ),
    Case(
        "span_masked_lm",
        f"--task span_masked_lm --criterion cross_entropy --arch bart {SMALL}",
        made_data.text,
    ),
    Case(
        "multilingual_language_modeling",
        "--task multilingual_language_modeling --sample-break-mode eos --langs de,en "
        f"--arch transformer_lm {DECODER} --dropout 0.1",
        made_data.text_of_languages,
    ),
    Case(
        "cross_lingual_lm",
        "--task cross_lingual_lm --monolingual-langs de,en --criterion legacy_masked_lm_loss "
        f"--masked-lm-only --arch masked_lm {ENCODER} --dropout 0.1 --num-segment 5 "
        "--tokens-per-sample 12",
        made_data.text_of_bert,
    ),
    Case(
        "legacy_masked_lm",
        f"--task legacy_masked_lm --criterion legacy_masked_lm_loss --arch bert_base {ENCODER} "
        "--dropout 0.1 --tokens-per-sample 16 --break-mode sentence",
        made_data.text_of_bert,
    ),
    Case(
        "denoising",
        f"--task denoising --arch bart_base {SMALL} --mask 0.3 --sample-break-mode eos "
        "--tokens-per-sample 16 --replace-length 1",
        made_data.text,
    ),
    Case(
        "multilingual_denoising",
        f"--task multilingual_denoising --arch mbart_base {SMALL} --mask 0.3 --add-lang-token "
        "--sample-break-mode eos --tokens-per-sample 16 --replace-length 1 --langs de,en",
        made_data.text_of_languages,
    ),
    roberta(
        "sentence_prediction",
        "--task sentence_prediction --num-classes 2 --criterion sentence_prediction",
    ),
    roberta(
        "sentence_prediction_regression",
        "--task sentence_prediction --num-classes 1 --criterion sentence_prediction "
        "--regression-target",
    ),
    roberta(
        "spectral_norm",
        "--task sentence_prediction --num-classes 2 --criterion sentence_prediction "
        "--spectral-norm-classification-head",
    ),
    roberta(
        "sentence_ranking",
        "--task sentence_ranking --num-classes 2 --criterion sentence_ranking",
    ),
    roberta(
        "sentence_prediction_adapters",
        "--task sentence_prediction_adapters --num-classes 2 "
        "--criterion sentence_prediction_adapters",
    ),
    Case("dummy_lm", f"{DUMMY_LM} --arch transformer_lm {DECODER}", made_data.nothing),
    Case(
        "dummy_masked_lm",
        f"--task dummy_masked_lm {DUMMY} --tokens-per-sample 6 --criterion masked_lm {ROBERTA}",
        made_data.nothing,
    ),
    Case(
        "dummy_mt",
        f"--task dummy_mt {DUMMY} --src-len 5 --tgt-len 5 --arch transformer {SMALL}",
        made_data.nothing,
    ),
    Case(
        "dummy_model",
        f"{DUMMY_LM} --arch dummy_model --num-layers 2 --embed-dim 8",
        made_data.nothing,
    ),
]

NOT_RUN: Dict[str, Dict[str, str]] = {"model": {}, "task": {}, "criterion": {}}
