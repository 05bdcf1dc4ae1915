"""config.pbtxt: Triton obeys every word of it."""

import pytest

from feature_client.model_config import ConfigError, check_config
from feature_client.release import Release, ReleaseError
from tests.feature_client.poison import read_again, seal

BATCHING = "dynamic_batching {\n}"
HARMFUL = {
    "another backend": ('backend: "onnxruntime"', 'backend: "python"', "backend is not onnxruntime"),
    "a second backend": (BATCHING, 'backend: "python"', "backend is not onnxruntime"),
    "another name": ('name: "engagement.1"', 'name: "engagement.2"', "name is not engagement.1"),
    "no batches": ("max_batch_size: 1024", "max_batch_size: 0", "max_batch_size"),
    "huge batches": ("max_batch_size: 1024", "max_batch_size: 99999", "max_batch_size"),
    "a file above": (BATCHING, 'default_model_filename: "../../x.onnx"', "default_model_filename"),
    "a queue policy": (
        BATCHING,
        "dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
        "dynamic_batching.default_queue_policy is nothing that Rapport writes",
    ),
    "an ensemble": (BATCHING, "ensemble_scheduling { step [ { } ] }", "ensemble_scheduling"),
    "a repository agent": (
        BATCHING,
        'model_repository_agents { agents [ { name: "evil" } ] }',
        "model_repository_agents",
    ),
    "a platform": (BATCHING, 'platform: "ensemble"', "platform"),
    "warm-up from a file": (
        BATCHING,
        'model_warmup { inputs { key: "numeric" value: { input_data_file: "x" } } }',
        "model_warmup.inputs.value.input_data_file",
    ),
    "a parameter": (
        BATCHING,
        'parameters { key: "EXECUTION_ENV_PATH" value: { string_value: "/tmp" } }',
        "EXECUTION_ENV_PATH",
    ),
    "another accelerator": ('name: "cuda"', 'name: "tensorrt"', "accelerator"),
    "an option of the accelerator": ('"use_tf32"', '"user_compute_stream"', "accelerator"),
    "TF32": ('value: "0"', 'value: "1"', "accelerator"),
    "no word of TF32": ('parameters {\n        key: "use_tf32"\n        value: "0"\n      }', "", "accelerator"),
    "a million instances": ("count: 1", "count: 1000000", "instance_group.count is not a number"),
    "fewer instances than none": ("count: 1", "count: -1", "instance_group.count is not a number"),
    "a long wait": (
        BATCHING,
        "dynamic_batching { max_queue_delay_microseconds: 600000000 }",
        "max_queue_delay_microseconds is not a number",
    ),
    "another version": ("versions: 1", "versions: 7", "versions is not a number"),
    "a huge warm-up": ("batch_size: 64", "batch_size: 2000000000", "model_warmup.batch_size is not a number"),
    "too many threads": ('string_value: "1"', 'string_value: "100000"', "intra_op_thread_count is not a number"),
    "another input": ('"numeric"', '"number"', "inputs are not those of its contract"),
    "another width": ("dims: 12", "dims: 13", "inputs are not those of its contract"),
    "another output": ('"scores"', '"score"', "outputs are not those of its contract"),
    "another contract": ('string_value: "', 'string_value: "0', "another contract"),
    "an extension": (BATCHING, "[evil.x] { }", "out of place"),
    "an escape": ('"onnxruntime"', '"\\x6fnnxruntime"', "out of place"),
    "a value of another kind": ('backend: "onnxruntime"', "backend { }", "not of the form"),
    "an open brace": (BATCHING, "dynamic_batching {", "out of place|not closed|nothing that"),
    "an open list": ("dims: 12", "dims: [ 12", "list does not end"),
    "depth": (BATCHING, "a { " * 50 + "} " * 50, "levels"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_config_with_anything_that_we_do_not_write_is_refused_by_name(release: Release, harm: str) -> None:
    before, after, reason = HARMFUL[harm]
    file = release.directory / "config.pbtxt"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    seal(release)

    with pytest.raises(ReleaseError, match=reason) as refused:
        read_again(release)

    assert "engagement.1/config.pbtxt" in str(refused.value)


@pytest.mark.parametrize("explainer", ["fast", "exact"])
@pytest.mark.parametrize("harm", ["another backend", "a queue policy", "a parameter", "another contract", "TF32"])
def test_the_configs_of_all_explainers_are_read_like_the_first(release: Release, harm: str, explainer: str) -> None:
    before, after, reason = HARMFUL[harm]
    name = release.graph_name(explainer)
    file = release.root / name / "config.pbtxt"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    seal(release)

    with pytest.raises(ReleaseError, match=reason) as refused:
        read_again(release)

    assert f"{name}/config.pbtxt" in str(refused.value)


@pytest.mark.parametrize("entities", ["-1", "4097", "many", ""])
def test_no_run_explains_more_than_the_network_takes_rows(release: Release, entities: str) -> None:
    said = release.contract.explanation.explainers["fast"].entities_at_once
    file = release.root / "engagement.1.explain" / "config.pbtxt"
    before = f'key: "rapport.entities_at_once"\n  value {{\n    string_value: "{said}"'
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, before.replace(f'"{said}"', f'"{entities}"')))
    seal(release)

    with pytest.raises(ReleaseError, match=r"entities_at_once is not a number from 0 to 4096"):
        read_again(release)


def test_the_config_of_another_explainer_is_refused(release: Release) -> None:
    (release.root / "engagement.1.explain" / "config.pbtxt").write_bytes(
        (release.root / "engagement.1.explain_exact" / "config.pbtxt").read_bytes()
    )
    seal(release)

    with pytest.raises(ReleaseError, match=r"explain/config\.pbtxt: name is not engagement\.1\.explain$"):
        read_again(release)


def test_what_an_operator_may_add_is_taken(pristine: Release) -> None:
    text = pristine.graphs()[0].config.read_text()
    text = text.replace("dims: 12", "dims: [12]").replace(
        BATCHING,
        "# measured\n"
        "dynamic_batching { preferred_batch_size: [64, 128] max_queue_delay_microseconds: 100 }\n"
        "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0, 1 ] } ]\n"
        'model_warmup { name: "w" batch_size: 1 inputs { key: "numeric" value: '
        "{ data_type: TYPE_FP32 dims: 12 zero_data: true } } }",
    )
    check_config(text.encode(), "engagement.1", pristine.contract, None)


def test_bytes_that_are_no_text_are_refused(pristine: Release) -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        check_config(b"\xff", "engagement.1", pristine.contract, None)
