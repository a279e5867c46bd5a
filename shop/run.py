"""A run: one directory that holds everything made on the way from logs to a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """The places in a run's directory.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def shoppers(self) -> Path:
        """The fitted shoppers."""
        return self.path / "shoppers"

    @property
    def policy(self) -> Path:
        """The trained policy."""
        return self.path / "policy"

    @property
    def bank(self) -> Path:
        """The copy bank: lines that the writer has written, and what they are expected to do."""
        return self.path / "writer" / "bank"

    @property
    def words(self) -> Path:
        """The language model that chooses by words."""
        return self.path / "words"

    @property
    def checkpoint(self) -> Path:
        """The last state of training."""
        return self.path / "checkpoint"

    @property
    def tensorboard(self) -> Path:
        """Learning curves, for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def reports(self) -> Path:
        """Reports as JSON: off-policy estimates, simulated A/B tests."""
        return self.path / "reports"
