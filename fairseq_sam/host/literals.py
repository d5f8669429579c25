"""A fault in how fairseq reads its configuration: strings of it are run as Python code.

fairseq calls ``eval`` on many values (``--encoder-layers`` of the convolutional models,
``--conv-feature-layers`` of wav2vec 2.0, ``--adam-betas`` …) when it builds a model, a criterion or
an optimizer.  A checkpoint brings its own configuration, so that one without any pickled code
could still run code, in ``fairseq-generate`` and in whatever else builds its model.
"""

import ast
import operator
import types
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Type

from .fairseq_modules import ModuleRepair, uses

_MOST_ITEMS = 1_000_000
_LARGEST_BASE = 1 << 32
_LARGEST_EXPONENT = 64

_ON_NUMBERS: Dict[Type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def evaluate_literal(source: Any) -> Any:
    """Returns the value of a literal, in place of the builtin ``eval``.

    A literal is made of numbers, strings, bytes, booleans and None, in tuples, lists, sets and
    dictionaries, with arithmetic on numbers and with ``+`` and ``*`` on tuples and lists.

    Args:
        source: the text.

    Raises:
        TypeError: ``source`` is not text (as from ``eval``, which fairseq counts on).
        ValueError: it is no literal, or its value would be huge.

    >>> evaluate_literal("[(512, 10, 5)] + [(512, 3, 2)] * 2")
    [(512, 10, 5), (512, 3, 2), (512, 3, 2)]
    >>> evaluate_literal("__import__('os').system('true')")
    Traceback (most recent call last):
    ...
    ValueError: "__import__('os').system('true')": not a literal, and code is not run
    """
    if not isinstance(source, str):
        raise TypeError("only text can be evaluated")
    try:
        value, _ = _evaluate(ast.parse(source.strip(), mode="eval").body)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        shown = source if len(source) <= 80 else f"{source[:77]}..."
        raise ValueError(f'"{shown}": not a literal, and code is not run') from None
    return value


def _evaluate(node: Optional[ast.AST]) -> Tuple[Any, int]:
    """Returns a value and how many items it has, those within its items included."""
    if isinstance(node, ast.Constant):
        return node.value, 1
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        items, size = _evaluate_all(node.elts)
        kinds: Dict[type, Callable[[List[Any]], Any]] = {ast.Tuple: tuple, ast.Set: set}
        return kinds.get(type(node), list)(items), size
    if isinstance(node, ast.Dict):
        keys, key_size = _evaluate_all(node.keys)  # with None for a ** that unpacks another
        values, size = _evaluate_all(node.values)
        return dict(zip(keys, values)), key_size + size
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value, size = _evaluate(node.operand)
        return (-_number(value) if isinstance(node.op, ast.USub) else _number(value)), size
    if isinstance(node, ast.BinOp):
        return _combine(node.op, _evaluate(node.left), _evaluate(node.right))
    raise ValueError


def _evaluate_all(nodes: Sequence[Optional[ast.AST]]) -> Tuple[List[Any], int]:
    pairs = [_evaluate(node) for node in nodes]
    return [value for value, _ in pairs], 1 + sum(size for _, size in pairs)


def _combine(kind: ast.operator, left: Tuple[Any, int], right: Tuple[Any, int]) -> Tuple[Any, int]:
    (first, first_size), (second, second_size) = left, right
    if isinstance(kind, ast.Mult) and isinstance(second, (tuple, list)):
        (first, first_size), (second, second_size) = right, left
    if not isinstance(first, (tuple, list)):
        return _compute(kind, _number(first), _number(second)), 1
    if isinstance(kind, ast.Add) and type(first) is type(second):
        return operator.add(first, second), first_size + second_size
    if isinstance(kind, ast.Mult) and isinstance(second, int):
        size = first_size * max(second, 1)
        if size > _MOST_ITEMS:
            raise ValueError
        return operator.mul(first, second), size
    raise ValueError


def _compute(kind: ast.operator, first: Any, second: Any) -> Any:
    within = abs(first) <= _LARGEST_BASE and abs(second) <= _LARGEST_EXPONENT
    if type(kind) not in _ON_NUMBERS or (isinstance(kind, ast.Pow) and not within):
        raise ValueError
    return _ON_NUMBERS[type(kind)](first, second)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float, complex)):
        raise ValueError
    return value


def _runs_strings(module: types.ModuleType) -> bool:
    return "eval" not in vars(module) and uses(module, "eval")


def _read_literals(module: types.ModuleType) -> None:
    """Lets the module's ``eval`` be :func:`evaluate_literal`."""
    vars(module)["eval"] = evaluate_literal


MODULE_REPAIRS = (
    ModuleRepair("strings of the configuration are run as code", _runs_strings, _read_literals),
)
