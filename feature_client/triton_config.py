"""How Triton runs a release's graph: one description, as the `config.pbtxt` of a repository and as the JSON that a
gateway sends along with the graph."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from feature_client.contract import CONTRACT_KEY, ENTITIES_AT_ONCE_KEY, Contract
from feature_client.release import ReleaseGraph

SCORE_MAX_ROWS = 1024
EXPLAIN_MAX_ROWS = 32
"""Rows of one batch of explanations: each of them costs thousands of rows of the trunk."""

WARM_ROWS = 64
"""Run at load, besides a single row and at most as many as a batch may have: a first inference allocates."""

Message = dict[str, Any]


class Symbol(str):
    """A value of an enumeration: protobuf's text has no quotes around it."""

    __slots__ = ()


class Map(dict[str, Any]):
    """A protobuf map: in protobuf's text a list of entries, each with its key."""


def config_pbtxt(name: str, contract: Contract, explainer: str | None) -> str:
    """For a Triton that reads the repository itself, with a GPU or without. explainer: None for the score graph."""
    config = _config(name, contract, explainer, version=1, instances=1, gpu=None)
    return "\n".join(_lines(config, "")) + "\n"


def config_json(graph: ReleaseGraph, *, version: int = 1, instances: int = 1, gpu: bool | None = None) -> str:
    """The same, for a load request. version: of the Triton model, which the graph is sent as.

    instances: how many batches run at once, on each GPU or on the CPUs.

    gpu: None takes every GPU that Triton has, and the CPUs where it has none; True refuses to load without one.
    """
    config = _config(graph.name, graph.contract, graph.explainer, version=version, instances=instances, gpu=gpu)
    return json.dumps(config)


def _config(
    name: str, contract: Contract, explainer: str | None, *, version: int, instances: int, gpu: bool | None
) -> Message:
    """A ModelConfig of Triton's protocol.

    Never a queue policy, as a size or a timeout of a queue is: with one, Triton 2.51 answers some requests 500 ms
    late. The gateway bounds what is in flight.
    """
    schema = contract.schema
    widths = {"numeric": len(schema.numeric), "categorical": len(schema.categorical)}
    types = {"numeric": Symbol("TYPE_FP32"), "categorical": Symbol("TYPE_INT64")}
    max_rows = SCORE_MAX_ROWS if explainer is None else EXPLAIN_MAX_ROWS
    # On CPUs more instances use more cores better than more threads do.
    parameters = {CONTRACT_KEY: contract.digest, "intra_op_thread_count": "1"}
    if explainer is not None:
        parameters[ENTITIES_AT_ONCE_KEY] = str(contract.explanation.explainers[explainer].entities_at_once)
    kind = {None: "KIND_AUTO", True: "KIND_GPU", False: "KIND_CPU"}[gpu]
    return {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        # Triton takes no width of 0, which a contract without categories has; of any width it takes that one, too.
        "input": [{"name": key, "data_type": types[key], "dims": [width or -1]} for key, width in widths.items()],
        "output": [
            {"name": key, "data_type": Symbol("TYPE_FP32"), "dims": list(shape[1:])}
            for key, shape in contract.outputs(1, explainer).items()
        ],
        # Every release is a Triton model of its own, which has one version: 1 in a repository.
        "version_policy": {"specific": {"versions": [version]}},
        "instance_group": [{"count": instances, "kind": Symbol(kind)}],
        "dynamic_batching": {},
        "optimization": {
            "execution_accelerators": {
                # TF32 keeps 10 bits of the mantissa: answers would differ from the golden ones in the third digit.
                "gpu_execution_accelerator": [{"name": "cuda", "parameters": Map(use_tf32="0")}]
            }
        },
        "parameters": Map({key: {"string_value": value} for key, value in parameters.items()}),
        "model_warmup": [
            {
                "name": f"{rows} rows",
                "batch_size": rows,
                "inputs": Map(
                    {
                        # Zeros: for a category, the index of a missing one.
                        key: {"data_type": types[key], "dims": [width], "zero_data": True}
                        for key, width in widths.items()
                    }
                ),
            }
            for rows in (1, min(WARM_ROWS, max_rows))
        ],
    }


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Protobuf's text format."""
    for name, value in message.items():
        if isinstance(value, Map):
            entries: list[Any] = [{"key": key, "value": entry} for key, entry in value.items()]
        else:
            entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if isinstance(entry, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(entry, indent + "  ")
                yield f"{indent}}}"
            else:
                # JSON's numbers, quoted strings, true and false are protobuf's, too.
                yield f"{indent}{name}: {entry if isinstance(entry, Symbol) else json.dumps(entry)}"
