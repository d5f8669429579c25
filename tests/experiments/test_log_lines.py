"""What is shown of a training's log."""

from fairseq_sam.experiments.log_lines import EpochLines

LOG = (
    "2024 | INFO | fairseq_cli.train | {'_name': None, 'common': {}}\n"
    '| INFO | train_inner | {"epoch": 2, "update": 1.5, "loss": "6"}\n'
    '| INFO | valid | {"epoch": 2, "valid_loss": "4.5"}\n'
    '| INFO | train | {"epoch": 2, "train_loss": "5", "train_train_wall": "7", '
    '"train_perturbation_on": "1", "train_sharpness": "0.25"}\n'
)


def test_one_line_an_epoch_whenever_it_is_looked_at(tmp_path):
    log, lines = tmp_path / "train.log", []
    log.write_text("what an earlier attempt left\n" + LOG)
    start = log.stat().st_size
    watch = EpochLines(log, lines.append).look
    for position in range(0, len(LOG), 40):
        with open(log, "a") as file:
            file.write(LOG[position : position + 40])
        assert watch(start) == ""
    expected = "epoch 2 train loss 5.000 valid loss 4.500 7 s sharpness 0.250"
    assert [" ".join(line.split()) for line in lines] == [expected]


def test_an_epoch_without_a_validation(tmp_path):
    log, lines = tmp_path / "train.log", []
    log.write_text('| train | {"epoch": 1, "train_loss": "5", "train_train_wall": "7"}\n')
    EpochLines(log, lines.append).look(0)
    assert [" ".join(line.split()) for line in lines] == ["epoch 1 train loss 5.000 7 s"]
