"""Metadata read without a runtime are those that a runtime reads."""

import onnxruntime as ort
import pytest

from feature_client.contract import CONTRACT_KEY
from feature_client.release import Release
from service.backends.onnx_metadata import metadata_of


def test_metadata_are_what_onnx_runtime_reads(release: Release) -> None:
    for graph in release.graphs():
        session = ort.InferenceSession(str(graph.file), providers=["CPUExecutionProvider"])

        found = metadata_of(graph.file.read_bytes())

        assert found == session.get_modelmeta().custom_metadata_map
        assert found[CONTRACT_KEY] == release.contract.digest


@pytest.mark.parametrize(
    "content", [b"garbage", b"\x72", b"\x72\xff", b"\xff" * 20, b"\x72\x05ab", b"\x72\x02\x0a\x09"]
)
def test_what_is_no_message_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        metadata_of(content)


def test_half_a_model_is_a_value_error_or_has_no_metadata(release: Release) -> None:
    content = release.graphs()[0].file.read_bytes()

    for size in range(1, len(content), 997):
        try:
            assert CONTRACT_KEY not in metadata_of(content[:size])
        except ValueError:
            continue
