"""The section [triton]: Triton's endpoints, and how it runs the two ONNX models."""

from __future__ import annotations

from dataclasses import dataclass

from config.loader import expect, listed


@dataclass(frozen=True)
class TritonSettings:
    """Triton's endpoints, and the instances of its ONNX models."""

    host: str
    http_port: int
    grpc_port: int
    others: str
    replicas: int
    metrics_port: int
    instance: str
    onnx_precision: str
    queue_delay_us: int
    start_timeout_s: float
    max_restarts: int

    def __post_init__(self) -> None:
        expect(0 <= self.http_port < 65536, "triton.http_port", self.http_port, "a port, or 0 for none")
        for name in ("grpc_port", "metrics_port"):
            expect(0 < getattr(self, name) < 65536, f"triton.{name}", getattr(self, name), "a port, 1 to 65535")
        for server in listed(self.others):
            port = server.rpartition(":")[2]
            is_server = ":" in server and port.isdigit() and 0 < int(port) < 65536
            expect(is_server, "triton.others", server, "servers such as 10.0.0.7:8001, separated by commas")
        expect(self.replicas >= 1, "triton.replicas", self.replicas, "a number from 1")
        expect(self.instance in ("auto", "cpu", "gpu"), "triton.instance", self.instance, "auto, cpu or gpu")
        precisions = ("float32", "float16")
        expect(self.onnx_precision in precisions, "triton.onnx_precision", self.onnx_precision, "float32 or float16")
        expect(self.queue_delay_us >= 0, "triton.queue_delay_us", self.queue_delay_us, "a number from 0")
        expect(self.start_timeout_s > 0, "triton.start_timeout_s", self.start_timeout_s, "a number above 0")
        expect(self.max_restarts >= 0, "triton.max_restarts", self.max_restarts, "a number from 0")

    @property
    def urls(self) -> tuple[str, ...]:
        """The gRPC endpoints of all servers; this host's is the first."""
        return (f"{self.host}:{self.grpc_port}", *listed(self.others))
