"""Run directories with things in them that no run leaves: what a reader must survive.

``GARBAGE`` holds, by name, a function that spoils a directory, and whether the fault is one that
the user is to be told of (other JSON files and empty logs are nobody's fault).
"""

import json
import os
import socket

DEEP = 200_000


def text(name, content):
    return lambda directory: (directory / name).write_text(content, encoding="utf-8")


def raw(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def score(value, **more):
    return text("a.json", json.dumps([{"name": "BLEU", "score": value, **more}]))


def _socket(directory):
    here = os.getcwd()
    os.chdir(directory)  # a socket's path may have a hundred letters only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.json")
    finally:
        os.chdir(here)


def _sparse(name, size):
    def make(directory):
        with open(directory / name, "wb") as stream:
            stream.truncate(size)

    return make


def _special(name):
    return {
        f"fifo {name}": (lambda d: os.mkfifo(d / name), True),
        f"directory {name}": (lambda d: (d / name).mkdir(), True),
        f"dangling {name}": (lambda d: (d / name).symlink_to("nowhere"), True),
        f"circular {name}": (lambda d: (d / name).symlink_to(name), True),
        f"zero {name}": (lambda d: (d / name).symlink_to("/dev/zero"), True),
        f"terminal {name}": (lambda d: (d / name).symlink_to("/dev/tty"), True),
        f"empty {name}": (text(name, ""), name == "a.json"),
        f"binary {name}": (raw(name, bytes(range(256)) * 40), name == "a.json"),
        f"zeros {name}": (raw(name, bytes(100_000)), name == "a.json"),
        f"huge {name}": (_sparse(name, 1 << 40), True),
        f"braces {name}": (text(name, "{" * 300_000 + "}"), name == "a.json"),
    }


def _line(**values):
    return text("z.log", f"| INFO | train | {json.dumps(values)}\n")


GARBAGE = {
    **_special("a.json"),
    **_special("z.log"),
    **{name: made for name, made in _special("generate.txt").items() if "empty" not in name},
    "socket": (_socket, True),
    "deep": (text("a.json", "[" * DEEP + "]" * DEEP), True),
    "deep objects": (text("a.json", '{"a":' * DEEP + "1" + "}" * DEEP), True),
    "half": (text("a.json", '[{"name": "BLEU", "sc'), True),
    "utf-16": (raw("a.json", '{"name": "BLEU", "score": 1}'.encode("utf-16")), True),
    "long number": (text("a.json", '{"name": "BLEU", "score": ' + "1" * 10_000 + "}"), True),
    **{
        f"score {str(value)[:9]}": (score(value), True)
        for value in ("text", "1.2.3", "30", [1], {"a": 1}, True, [[[]]])
    },
    "name null": (text("a.json", '[{"name": null, "score": 1}]'), False),
    "name list": (text("a.json", '[{"name": [1], "score": 1}]'), False),
    "name with lines": (text("a.json", '[{"name": "a\\nb|\\ud800", "score": 1}]'), False),
    "score null": (score(None), False),
    "score nan": (text("a.json", '[{"name": "M", "score": NaN}]'), False),
    "score infinite": (text("a.json", '[{"name": "M", "score": 1e999}]'), False),
    "score enormous": (text("a.json", '[{"name": "M", "score": ' + "9" * 400 + "}]"), False),
    "p-value text": (score(1.0, p_value="small"), False),
    "p-value 7": (score(1.0, p_value=7), True),
    "p-value nan": (text("a.json", '[{"name": "M", "score": 1, "p_value": NaN}]'), True),
    "signature list": (score(1.0, signature=["x"]), False),
    "chance text": (score(1.0, chance="x"), False),
    "other JSON": (text("a.json", '{"rho": 1}'), False),
    "JSON number": (text("a.json", "3"), False),
    "JSON null": (text("a.json", "null"), False),
    "BLEU4 1.2.3": (text("generate.txt", "Generate test: BLEU4 = 1.2.3, 5/6\n"), True),
    "BLEU4 nothing": (text("generate.txt", "Generate test: BLEU4 = , 5/6\n"), True),
    "BLEU4 cut off": (text("generate.txt", "Generate test: BLEU4 ="), False),
    "rho 1.2.3": (text("z.log", "INFO | x | sam: rho 1.2.3 (l2 norm)\n"), False),
    "rho 1e999": (text("z.log", "INFO | x | sam: rho 1e999 (l2 norm)\n"), False),
    "rho e": (text("z.log", "INFO | x | sam: rho e (l2 norm)\n"), False),
    "epoch of another alphabet": (text("z.log", "epoch ٣ | loss 5\n"), False),
    "epoch of many digits": (text("z.log", f"epoch {'9' * 9000} | loss 5\n"), False),
    "epoch true": (_line(epoch=True, train_loss="1"), False),
    "epoch 1.5": (_line(epoch=1.5, train_loss="1"), False),
    "epoch huge": (_line(epoch=10**40, train_loss="1"), False),
    "epoch negative": (_line(epoch=-1, train_loss="1"), False),
    "loss null": (_line(epoch=2, train_loss=None, valid_loss=None), False),
    "loss nested": (_line(epoch=2, train_loss=[["1"]]), False),
    "loss text": (_line(epoch=2, train_loss="1.2.3"), False),
    "loss huge": (_line(epoch=2, valid_loss="1e308", train_loss="-1e308"), False),
    "time huge": (_line(epoch=2, train_loss="1", train_train_wall="1e308"), False),
    "time infinite": (_line(epoch=2, train_loss="1", train_train_wall="inf"), False),
    "deep line": (text("z.log", "x " + '{"a":' * DEEP + "1" + "}" * DEEP + "\n"), False),
    "half a line": (text("z.log", '| train | {"epoch": 9, "train_loss": "4.5", "tr'), False),
    "half a plain line": (text("z.log", "| train | epoch 009 | loss"), False),
    "two lines in one": (text("z.log", 'x | {"epoch": 1, "tr2024 | {"epoch": 1, "a": 2}\n'), False),
    "old format": (
        text("z.log", "| epoch 002 | loss 5.1 | nll_loss 4 | ppl 16.0 | wps 1\n"),
        False,
    ),
}
