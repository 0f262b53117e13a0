"""Networks run by OpenVINO or ONNX Runtime, from a converted graph.

Takes: the bytes of an ONNX graph that were hashed. Gives: a `Runner`. Owns: how each runtime is set up.
Never: imports a runtime before it is asked for one, or sends a runtime's telemetry.
"""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Precision = Literal["f32", "bf16"]


class OpenVinoRunner:
    """A graph on OpenVINO's CPU plug-in.

    Parameters
    ----------
    graph : bytes
        ONNX.
    precision : {"f32", "bf16"}
        Of the arithmetic; weights are stored in float32 either way.
    threads : int
        Of the CPU.
    """

    on_gpu = False

    def __init__(self, graph: bytes, precision: Precision, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(graph)
        compiled = core.compile_model(
            model,
            "CPU",
            {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision},
        )
        self.label = f"openvino {openvino.__version__.partition('-')[0]} {precision}"
        self._request: Any = compiled.create_infer_request()
        self._lock = threading.Lock()  # a request is one call's; a second would cost its memory again, and both would share the cores

    @staticmethod
    def has_bf16() -> bool:
        """Whether this CPU computes in bfloat16 itself."""
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run the graph."""
        with self._lock:
            given = self._request.infer([np.ascontiguousarray(values) for values in inputs], share_inputs=True)
            out: NDArray[np.float32] = np.array(given[0], np.float32)  # a copy: the next call writes into the request's own
        return out


class OnnxRunner:
    """A graph on ONNX Runtime's CPU provider, in float32.

    Parameters
    ----------
    graph : bytes
        ONNX.
    threads : int
        Of the CPU.
    """

    on_gpu = False

    def __init__(self, graph: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would burn the decoders' cores
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._names = [port.name for port in self._session.get_inputs()]
        self.label = f"onnxruntime {onnxruntime.__version__} f32"

    def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run the graph."""
        given = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        out: NDArray[np.float32] = given[0]
        return out
