"""A source of bytes for tests."""

import numpy as np

from bertkit.core.files.byte_source import ByteSource


class InMemory(ByteSource):
    """Bytes of a test, which remembers the ranges that were read."""

    def __init__(self, content: bytes, in_order: bool = False) -> None:
        self.name, self.size, self.content, self.in_order = "memory", len(content), content, in_order
        self.reads: list[tuple[int, int]] = []

    def _read(self, begin: int, end: int) -> np.ndarray:
        self.reads.append((begin, end))
        return np.frombuffer(bytearray(self.content[begin:end]), np.uint8)

    @property
    def read_bytes(self) -> int:
        return sum(end - begin for begin, end in self.reads)
