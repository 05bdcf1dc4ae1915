"""config.pbtxt: what may stand in one. Triton obeys every word of it, so only what Rapport writes is let through.

The text format of protobuf, as far as our files use it; what is beyond that is refused and not guessed at.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from feature_client.contract import CONTRACT_KEY, ENTITIES_AT_ONCE_KEY, NETWORK_ROWS_AT_ONCE, Contract
from feature_client.errors import RapportError

Value: TypeAlias = "str | Message"
Message: TypeAlias = "list[tuple[str, Value]]"
Allowed: TypeAlias = "Mapping[str, Allowed | None]"

MAX_BATCH = 65_536
MAX_DEPTH = 8

PAIR: Allowed = {"key": None, "value": None}
ALLOWED: Allowed = {
    "name": None,
    "backend": None,
    "max_batch_size": None,
    "input": {"name": None, "data_type": None, "dims": None},
    "output": {"name": None, "data_type": None, "dims": None},
    "version_policy": {"specific": {"versions": None}},
    "instance_group": {"name": None, "kind": None, "count": None, "gpus": None},
    # No queue policy: with one, Triton 2.51 answers some requests 500 ms late.
    "dynamic_batching": {"preferred_batch_size": None, "max_queue_delay_microseconds": None},
    "optimization": {"execution_accelerators": {"gpu_execution_accelerator": {"name": None, "parameters": PAIR}}},
    "parameters": {"key": None, "value": {"string_value": None}},
    "model_warmup": {
        "name": None,
        "batch_size": None,
        "count": None,
        "inputs": {
            "key": None,
            "value": {"data_type": None, "dims": None, "zero_data": None, "random_data": None},
        },
    },
}
"""Key -> what may stand inside of it; None for a plain value. Not here: other backends' files, ensembles, repository
agents (which run libraries), warm-up from files, and all that we do not write."""

NUMBERS: Mapping[str, int] = {
    "version_policy.specific.versions": 1,  # a repository has no other
    "instance_group.count": 64,
    "dynamic_batching.max_queue_delay_microseconds": 100_000,
    "model_warmup.batch_size": MAX_BATCH,
    "model_warmup.count": 1_000,
    "model_warmup.inputs.value.dims": 65_536,
}
"""Key -> the largest number there: Triton would start a million processes, or let every request wait for an hour."""

PARAMETERS: Mapping[str, int] = {
    "intra_op_thread_count": 256,
    "inter_op_thread_count": 256,
    ENTITIES_AT_ONCE_KEY: NETWORK_ROWS_AT_ONCE,
}
"""Parameter -> the largest number there. Besides these there is the digest of the contract."""

ACCELERATORS = frozenset({"cuda"})

TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<text>"[^"\\\n]*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?)
      | (?P<mark>[{}:\[\],])""",
    re.VERBOSE,
)


class ConfigError(RapportError):
    """A config.pbtxt with something that Rapport does not write, or of another model."""


def check_config(content: bytes, name: str, contract: Contract, explainer: str | None) -> None:
    """content: of config.pbtxt. name: of the model, which is its directory's. explainer: None for the score graph.

    Raises ConfigError.
    """
    try:
        config = _parsed(content.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError("it is not UTF-8") from exc
    _check_keys(config, ALLOWED, "")
    for key, expected in (("name", [name]), ("backend", ["onnxruntime"])):
        if _texts(config, key) != expected:
            raise ConfigError(f"{key} is not {expected[0]}")
    rows = _texts(config, "max_batch_size")
    if len(rows) != 1 or not re.fullmatch("[0-9]{1,5}", rows[0]) or not 1 <= int(rows[0]) <= MAX_BATCH:
        raise ConfigError(f"max_batch_size is not one number from 1 to {MAX_BATCH}")
    _check_tensors(config, contract, explainer)
    _check_settings(config, contract)


def _check_keys(message: Message, allowed: Allowed, path: str) -> None:
    for key, value in message:
        inside = allowed.get(key, "")
        if inside == "":
            raise ConfigError(f"{path}{key} is nothing that Rapport writes")
        if isinstance(value, str) != (inside is None):
            raise ConfigError(f"{path}{key} is not of the form that Rapport writes")
        most = NUMBERS.get(f"{path}{key}")
        if most is not None and not _is_number(value, most):
            raise ConfigError(f"{path}{key} is not a number from 0 to {most:,}")
        if not isinstance(value, str) and isinstance(inside, Mapping):
            _check_keys(value, inside, f"{path}{key}.")


def _check_tensors(config: Message, contract: Contract, explainer: str | None) -> None:
    inputs = {
        "numeric": ("TYPE_FP32", [len(contract.schema.numeric)]),
        # Of a contract without categories, any: Triton takes no width of 0.
        "categorical": ("TYPE_INT64", [len(contract.schema.categorical) or -1]),
    }
    outputs = {name: ("TYPE_FP32", list(shape[1:])) for name, shape in contract.outputs(1, explainer).items()}
    for key, expected in (("input", inputs), ("output", outputs)):
        found = sorted(
            (_texts(tensor, "name"), _texts(tensor, "data_type"), _texts(tensor, "dims"))
            for tensor in _messages(config, key)
        )
        if found != sorted(([name], [kind], [str(size) for size in row]) for name, (kind, row) in expected.items()):
            raise ConfigError(f"its {key}s are not those of its contract")


def _check_settings(config: Message, contract: Contract) -> None:
    parameters = [
        (_texts(pair, "key"), [text for value in _messages(pair, "value") for text in _texts(value, "string_value")])
        for pair in _messages(config, "parameters")
    ]
    for key, values in parameters:
        if len(key) != 1 or key[0] not in (CONTRACT_KEY, *PARAMETERS):
            raise ConfigError(f"the parameter {key} is nothing that Rapport writes")
        if key != [CONTRACT_KEY] and not all(_is_number(value, PARAMETERS[key[0]]) for value in values):
            raise ConfigError(f"{key[0]} is not a number from 0 to {PARAMETERS[key[0]]}")
    if [value for key, value in parameters if key == [CONTRACT_KEY]] != [[contract.digest]]:
        raise ConfigError("it was written for another contract")
    for optimization in _messages(config, "optimization"):
        for accelerators in _messages(optimization, "execution_accelerators"):
            for accelerator in _messages(accelerators, "gpu_execution_accelerator"):
                options = [
                    (_texts(pair, "key"), _texts(pair, "value")) for pair in _messages(accelerator, "parameters")
                ]
                # With TF32 on, answers would differ from the golden ones in the third digit.
                if not ACCELERATORS.issuperset(_texts(accelerator, "name")) or options != [(["use_tf32"], ["0"])]:
                    raise ConfigError("its accelerator is not the one that Rapport writes")


def _is_number(value: Value, most: int) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) is not None and int(value) <= most


def _texts(message: Message, key: str) -> list[str]:
    return [value for found, value in message if found == key and isinstance(value, str)]


def _messages(message: Message, key: str) -> list[Message]:
    return [value for found, value in message if found == key and not isinstance(value, str)]


def _parsed(text: str) -> Message:
    tokens = list(_tokens(text))
    tokens.reverse()  # the next one is popped off the end
    message = _message(tokens, depth=0)
    if tokens:
        raise ConfigError(f"{tokens[-1]!r} is out of place")
    return message


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ConfigError(f"character {at} is out of place")
        if match.lastgroup != "skip":
            yield match[0]
        at = match.end()


def _message(tokens: list[str], depth: int) -> Message:
    if depth > MAX_DEPTH:
        raise ConfigError(f"more than {MAX_DEPTH} levels")
    fields: Message = []
    while tokens and tokens[-1] != "}":
        key = tokens.pop()
        if not key[0].isalpha():
            raise ConfigError(f"{key!r} stands where a key should")
        colon = bool(tokens) and tokens[-1] == ":"
        if colon:
            tokens.pop()
        fields += [(key, value) for value in _list(tokens, depth, plain=colon)]
    return fields


def _list(tokens: list[str], depth: int, *, plain: bool) -> Iterator[Value]:
    """One value, or those of a list in brackets. plain: a colon went before, so it may be other than a message."""
    if not tokens or tokens[-1] != "[":
        yield _value(tokens, depth, plain=plain)
        return
    tokens.pop()
    if tokens and tokens[-1] == "]":
        tokens.pop()
        return
    while True:
        yield _value(tokens, depth, plain=plain)
        mark = tokens.pop() if tokens else ""
        if mark == "]":
            return
        if mark != ",":
            raise ConfigError("a list does not end")


def _value(tokens: list[str], depth: int, *, plain: bool) -> Value:
    found = tokens.pop() if tokens else ""
    if found == "{":
        message = _message(tokens, depth + 1)
        if not tokens or tokens.pop() != "}":
            raise ConfigError("a brace is not closed")
        return message
    if not plain or not found or found in "}:[],":
        raise ConfigError("a value is missing")
    return found.strip('"')
