"""What is closed at the end of its `with` block, and aborted where that ends in an error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self


class Closing(ABC):
    """A context that is closed or aborted."""

    @abstractmethod
    def close(self) -> Any:
        """End what was begun, whole."""

    @abstractmethod
    def abort(self) -> None:
        """Leave it as it is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
