"""Data for every kind of task, made in a fraction of a second and without any other package."""

import json
import random
import types
from pathlib import Path
from typing import List, Sequence

import numpy as np
import torch

NUM_WORDS = 24
NUM_SENTENCES = 16  # of which a batch takes four


def write_dictionary(path: Path, words: Sequence[str] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = words or [f"w{index}" for index in range(NUM_WORDS)]
    path.write_text("".join(f"{word} 100\n" for word in words))


def made_sentences(seed: int, count: int = NUM_SENTENCES, length: int = 7) -> List[torch.Tensor]:
    """Returns sentences of several lengths; 2 ends them, words begin at 4."""
    rng = random.Random(seed)
    return [
        torch.tensor([rng.randrange(4, 4 + NUM_WORDS) for _ in range(rng.randint(3, length))] + [2])
        for _ in range(count)
    ]


def write_indexed(prefix: Path, items: Sequence[torch.Tensor]) -> None:
    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for item in items:
        builder.add_item(item)
    builder.finalize(f"{prefix}.idx")


def nothing(folder: Path) -> Path:
    """For tasks that make up their batches themselves."""
    return folder


def text_pairs(folder: Path) -> Path:
    """Parallel German and English with one vocabulary, and the alignments of their words."""
    for language, seed in (("de", 1), ("en", 2)):
        write_dictionary(folder / f"dict.{language}.txt")
        write_indexed(folder / f"train.de-en.{language}", made_sentences(seed))
    pairs = [torch.tensor([0, 0, 1, 1, 2, 1]) for _ in range(NUM_SENTENCES)]
    write_indexed(folder / "train.align.de-en", pairs)
    return folder


def text(folder: Path) -> Path:
    """Sentences of one language."""
    write_dictionary(folder / "dict.txt")
    write_indexed(folder / "train", made_sentences(1))
    return folder


def many_languages(folder: Path) -> Path:
    """Parallel German-English and English-German, and each alone; one vocabulary."""
    text_pairs(folder)
    for source, target in (("de", "en"), ("en", "de")):
        for language, seed in (("de", 3), ("en", 4)):
            write_indexed(folder / f"train.{source}-{target}.{language}", made_sentences(seed))
    for language, seed in (("de", 5), ("en", 6)):
        write_indexed(folder / f"train.{language}-None.{language}", made_sentences(seed))
    return folder


def text_of_languages(folder: Path) -> Path:
    """A folder of German and a larger one of English, with one dictionary."""
    write_dictionary(folder / "dict.txt")
    for language, count in (("de", 16), ("en", 24)):
        write_indexed(folder / language / "train", made_sentences(count, count))
    return folder


def text_to_translate_back(folder: Path) -> Path:
    """The same, with the languages' tokens in the dictionary."""
    words = [f"w{index}" for index in range(NUM_WORDS)]
    write_dictionary(folder / "dict.txt", [*words, "__de__", "__en__"])
    for language, seed in (("de", 1), ("en", 2)):
        write_indexed(folder / language / "train", made_sentences(seed))
    return folder


def text_of_bert(folder: Path) -> Path:
    """Two corpora in one folder, with the dictionary of fairseq's first BERT and XLM."""
    write_dictionary(folder / "dict.txt")
    for name, seed in (("train", 1), ("train.de", 2), ("train.en", 3)):
        write_indexed(folder / name, made_sentences(seed))
    return folder


def pairs_and_text_of_bert(folder: Path) -> Path:
    """Both, for a translator that starts from a language model."""
    return text_of_bert(text_pairs(folder))


def two_channels(folder: Path) -> Path:
    """The units of two speakers in a dialogue."""
    for channel, seed in (("unitA", 1), ("unitB", 2)):
        write_dictionary(folder / f"dict.{channel}.txt")
        same_lengths = [torch.cat([each[:3], each[-1:]]) for each in made_sentences(seed)]
        write_indexed(folder / f"train.{channel}", same_lengths)
    return folder


def labelled_text(folder: Path) -> Path:
    """Pairs of sentences in two classes, and the score of a pair."""
    for part, seed in (("input0", 1), ("input1", 2), ("input2", 3)):
        write_dictionary(folder / part / "dict.txt")
        write_indexed(folder / part / "train", made_sentences(seed))
    write_dictionary(folder / "label" / "dict.txt", ["no", "yes"])
    labels = [torch.tensor([4 + index % 2]) for index in range(NUM_SENTENCES)]
    write_indexed(folder / "label" / "train", labels)
    scores = "".join(f"{index % 5}.5\n" for index in range(NUM_SENTENCES))
    (folder / "label" / "train.label").write_text(scores)
    return folder


def ranked_text(folder: Path) -> Path:
    """Which of two sentences is the better one."""
    labelled_text(folder)
    labels = "".join(f"{index % 2}\n" for index in range(NUM_SENTENCES))
    (folder / "label" / "train.label").write_text(labels)
    return folder


def sound(folder: Path) -> Path:
    """Waves of about 0.2 s as arrays, which the tests' ``soundfile`` reads, and their letters."""
    rng = np.random.RandomState(1)
    rows = []
    for index in range(NUM_SENTENCES):
        wave = rng.randn(3000 + 40 * index).astype(np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", wave)
        rows.append(f"{index}.npy\t{len(wave)}\n")
    (folder / "train.tsv").write_text(f"{folder}\n{''.join(rows)}")
    write_dictionary(folder / "dict.ltr.txt", ["a", "b", "c", "|"])
    write_dictionary(folder / "dict.km.txt", [str(index) for index in range(8)])
    letters = ["a b c |", "b | c a", "c a | b b |"]
    lines = [letters[index % len(letters)] for index in range(NUM_SENTENCES)]
    (folder / "train.ltr").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train.wrd").write_text("".join(f"{line}\n" for line in lines))
    clusters = [
        " ".join(str(rng.randint(8)) for _ in range(16 + index // 4))
        for index in range(NUM_SENTENCES)
    ]
    (folder / "train.km").write_text("".join(f"{line}\n" for line in clusters))
    write_dictionary(folder / "dict.cls.txt", ["0", "1"])
    (folder / "train.cls").write_text("".join(f"{i % 2}\n" for i in range(NUM_SENTENCES)))
    return folder


SPEECH = """\
vocab_filename: dict.txt
input_feat_per_channel: 8
input_channels: 1
audio_root: "{folder}"
transforms: {{}}
features:
  type: spectrogram+melscale+log
  n_mels: 8
  n_fft: 16
  sample_rate: 16000
  win_length: 16
  hop_length: 8
  f_min: 0
  f_max: 8000
  eps: 1e-2
  pitch_min: -1.0
  pitch_max: 1.0
  energy_min: -1.0
  energy_max: 1.0
"""

SECOND_TASKS = """\
text:
  decoder_type: transformer
  dict: "{folder}/dict.txt"
  data: "{folder}/text"
  encoder_layer: 1
  loss_weight: 0.5
  decoder_args: &args
    decoder_layers: 1
    decoder_embed_dim: 8
    decoder_ffn_embed_dim: 8
    decoder_attention_heads: 2
letters:
  decoder_type: ctc
  dict: "{folder}/dict.txt"
  data: "{folder}/text"
  encoder_layer: 1
  loss_weight: 0.5
"""

FIRST_PASS = """\
target_text:
  decoder_type: transformer
  dict: "{folder}/dict.txt"
  data: "{folder}/text"
  is_first_pass_decoder: true
  loss_weight: 0.5
  decoder_args:
    decoder_layers: 1
    decoder_embed_dim: 8
    decoder_ffn_embed_dim: 8
    decoder_attention_heads: 2
"""


def speech(folder: Path) -> Path:
    """Spectrograms with their translations as text, units and spectrograms, and pitches."""
    write_dictionary(folder / "dict.txt")
    rng = np.random.RandomState(1)
    columns = "id audio n_frames src_audio src_n_frames tgt_audio tgt_n_frames src_text tgt_text"
    rows = [[*columns.split(), "speaker", "src_lang", "tgt_lang", "duration", "pitch", "energy"]]
    units = [list(rows[0])]
    for index, sentence in enumerate(made_sentences(1)):
        words = [f"w{int(word) - 4}" for word in sentence[:-1]]
        names = {}
        frames = 3 * len(words) + 6
        values = {
            "source": rng.randn(24 + index, 8),
            "target": rng.randn(frames, 8),
            "pitch": rng.uniform(-1, 1, len(words)),
            "energy": rng.uniform(-1, 1, len(words)),
        }
        for name, array in values.items():
            names[name] = f"{name}{index}.npy"
            np.save(folder / names[name], array.astype(np.float32))
        durations = [3] * (len(words) - 1) + [9]
        text = " ".join(words)
        rest = [text, text, "one", "de", "en", " ".join(map(str, durations))]
        rest += [names["pitch"], names["energy"]]
        source = [names["source"], str(24 + index)]
        row = [f"u{index}", *source, *source, names["target"], str(frames), *rest]
        rows.append(row)
        unit = " ".join(str(rng.randint(10)) for _ in range(len(words)))
        units.append([*row[:5], unit, str(len(words)), *row[7:]])
    _write_table(folder / "train.tsv", rows)
    _write_table(folder / "units" / "train.tsv", units)
    # Text to speech reads the spectrogram that is to be spoken from the column "audio".
    spoken = [[r[0], r[5], r[6], *r[3:]] for r in rows[1:]]
    _write_table(folder / "spoken" / "train.tsv", [rows[0], *spoken])
    texts = [["id", "tgt_text"], *([row[0], row[8]] for row in rows[1:])]
    _write_table(folder / "text" / "train.tsv", texts)
    for place in (folder, folder / "units", folder / "spoken"):
        (place / "config.yaml").write_text(SPEECH.format(folder=folder))
        (place / "tasks.yaml").write_text(SECOND_TASKS.format(folder=folder))
        (place / "passes.yaml").write_text(FIRST_PASS.format(folder=folder))
        write_dictionary(place / "dict.txt")
    return folder


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def units(folder: Path) -> Path:
    """Speech to units."""
    return speech(folder) / "units"


def spoken(folder: Path) -> Path:
    """Text to speech."""
    return speech(folder) / "spoken"


def sound_to_text(folder: Path) -> Path:
    """Waves and their translations."""
    sound(folder)
    rows = [["id", "audio", "n_frames", "tgt_text", "speaker", "src_lang", "tgt_lang"]]
    for index, sentence in enumerate(made_sentences(1)):
        (folder / f"{index}.npy").rename(folder / f"{index}.wav")
        text = " ".join(f"w{int(word) - 4}" for word in sentence[:-1])
        rows.append([f"u{index}", f"{index}.wav", str(3000 + 40 * index), text, "one", "de", "en"])
    _write_table(folder / "train.tsv", rows)
    config = SPEECH.format(folder=folder) + "use_audio_input: true\n"
    (folder / "config.yaml").write_text(config)
    write_dictionary(folder / "dict.txt")
    return folder


def units_with_pitch(folder: Path) -> Path:
    """Units of speech with their durations and pitches."""
    rng = np.random.RandomState(1)
    lengths = [8 + index for index in range(NUM_SENTENCES)]
    (folder / "train.txt.leng.txt").write_text("".join(f"{length}\n" for length in lengths))
    (folder / "train.txt.path.txt").write_text("".join(f"{i}.wav\n" for i in range(len(lengths))))
    for name, values in (
        ("code", rng.randint(10, size=sum(lengths))),
        ("dur", rng.randint(1, 4, size=sum(lengths))),
        ("f0", rng.uniform(1, 2, size=sum(lengths)).astype(np.float32)),
    ):
        np.save(folder / f"train.txt.{name}.npy", values)
    torch.save({"f0_mean": 1.0, "f0_std": 1.0}, folder / "stats.pt")
    config = {
        "manifests": {"train": f"{folder}/train.txt"},
        "n_units": 10,
        "sampling_rate": 16000,
        "code_hop_size": 320,
        "f0_stats": f"{folder}/stats.pt",
        "f0_vq_type": "naive",
        "f0_vq_n_units": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def laser(folder: Path) -> Path:
    """What examples/laser asks for: a list of parallel corpora, in fairseq's oldest format."""
    from fairseq.data.indexed_dataset import IndexedDatasetBuilder

    text_pairs(folder)
    for language, seed in (("de", 1), ("en", 2)):
        builder = IndexedDatasetBuilder(str(folder / f"old.{language}.bin"))
        for sentence in made_sentences(seed):
            builder.add_item(sentence.int())
        builder.finalize(str(folder / f"old.{language}.idx"))
    corpora = {
        "src_vocab": f"{folder}/dict.de.txt",
        "tgt_vocab": f"{folder}/dict.en.txt",
        "train": [
            {
                "id": number,
                "src": f"{folder}/old.de",
                "tgt": f"{folder}/old.en",
            }
            for number in range(2)
        ],
    }
    corpora["valid"] = corpora["train"]
    (folder / "laser.json").write_text(json.dumps(corpora))
    return folder / "laser.json"


def soundfile() -> types.ModuleType:
    """Returns a module that reads arrays as the package ``soundfile`` reads sound."""
    module = types.ModuleType("soundfile")

    def read(path, always_2d=False, **_):
        wave = np.load(path)
        return (wave[:, None] if always_2d else wave), 16000

    module.read = read  # type: ignore[attr-defined]
    return module
