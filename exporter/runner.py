"""What an opened artifact can do: the protocols that `Target.open` returns, and that it is measured through."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Sample = NDArray[Any]  # [T] token ids, a picture's pixel values float32 [C, H, W], a spectrogram [mel, frames]


def rows_of_states(answer: Floats) -> Floats:
    """A picture's hidden states [B, P, H], also where a convolutional model has them as [B, H, height, width]."""
    return answer if answer.ndim < 4 else np.moveaxis(answer, 1, -1).reshape(len(answer), -1, answer.shape[1])


class Runner(Protocol):
    """An opened artifact. Used with `with`: closing frees the engine."""

    engine: str  # what really runs it, such as "onnxruntime 1.31 CPUExecutionProvider"

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def logits(self, ids: Sample) -> Floats:
        """[T] token ids to float32 [T, V] logits, without a cache.

        For feature extraction the last hidden states [T, H]; for classification the class logits [1, C], also of a
        picture; of a picture's features its last hidden states [1, P, H].
        """
        ...


@runtime_checkable
class BatchRunner(Runner, Protocol):
    """A runner that takes several padded sequences at once."""

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        """[B, T] ids and mask to [B, T, V] (classification: [B, C]); what is masked out may hold anything.

        Pictures [B, C, H, W] have no padding, and their mask [B, C] says nothing.
        """
        ...


@runtime_checkable
class SegmentRunner(Runner, Protocol):
    """A runner that can be told which of two texts each token is of, as BERT's tokenizers number them."""

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        """As `logits`, with [T] segments; a model that knows none leaves them out."""
        ...


@runtime_checkable
class CachedRunner(Runner, Protocol):
    """A runner whose format has a KV cache."""

    def prefill(self, ids: Ids) -> Floats:
        """Empties the cache, reads [T] ids into it, and returns the last position's logits [V]."""
        ...

    def step(self, token: int) -> Floats:
        """Decodes one token after those in the cache: its logits [V]."""
        ...


@runtime_checkable
class BatchCachedRunner(CachedRunner, Protocol):
    """A runner whose cache takes several sequences of one length at once; `step` is not for what these have read."""

    def prefill_batch(self, ids: Ids) -> Floats:
        """Empties the cache, reads [B, T] ids into it, and returns the last positions' logits [B, V]."""
        ...

    def step_batch(self, tokens: Ids) -> Floats:
        """Decodes one token [B] after each of those in the cache: their logits [B, V]."""
        ...


@runtime_checkable
class EncoderDecoderRunner(CachedRunner, Protocol):
    """An encoder and a decoder. What `logits`, `prefill` and `step` are given is the decoder's, for the last source."""

    def encode(self, ids: Sample) -> Floats:
        """Reads a source of [S] ids, which all that follows is asked of: the encoder's last states [S, H].

        Of a sound its spectrogram [mel, frames]: states [positions, H].
        """
        ...

    def paired(self, sources: Sample, mask: Ids, ids: Ids) -> Floats:
        """Padded sources [B, S] with their mask, and the decoder's ids [B, T]: [B, T, V], without a cache.

        Spectrograms [B, mel, frames] have no padding, and their mask [B, mel] says nothing.
        """
        ...


@runtime_checkable
class MatchingRunner(BatchRunner, Protocol):
    """A tower that reads texts and one that reads pictures. What `logits` and `batch` answer of a picture [C, H, W] is
    how well it matches each of the texts that were given last, [1, N] and [B, N]."""

    def match(self, ids: Ids, mask: Ids) -> None:
        """Gives the texts, padded on the right: [N, T]."""
        ...

    def texts(self, ids: Ids, mask: Ids) -> Floats:
        """The vectors [B, D] of padded texts [B, T], as their own tower has them."""
        ...

    def pictures(self, pixels: Sample) -> Floats:
        """The vectors [B, D] of pictures [B, C, H, W], as their own tower has them."""
        ...


@runtime_checkable
class PiecewiseRunner(CachedRunner, Protocol):
    """A runner whose `logits` read a longer text than `at_once` tokens in pieces, through its cache."""

    at_once: int


@runtime_checkable
class TokenizingRunner(Runner, Protocol):
    """A runner whose artifact carries a tokenizer of its own, which its users get."""

    def tokenize(self, text: str) -> Ids:
        """A text's ids [T], special tokens parsed and added as the checkpoint's own tokenizer does by default."""
        ...


@runtime_checkable
class BoundedRunner(Runner, Protocol):
    """A runner that takes no longer texts than this many tokens, whatever the model could."""

    max_length: int


@runtime_checkable
class DeviceRunner(Runner, Protocol):
    """A runner on a GPU."""

    device_ms: float  # of the last call, between CUDA events: the engine's own time
    device_memory_bytes: dict[str, int]


@runtime_checkable
class PlacedRunner(Runner, Protocol):
    """A runner on a GPU whose engine leaves some of a graph to the CPU."""

    def placement(self, ids: Ids) -> dict[str, Any]:
        """What of one forward over [T] ids ran on the CPU: `on_cpu` (nodes by operator), `on_device` (how many nodes),
        `copies` (of tensors between the two)."""
        ...


@runtime_checkable
class TracingRunner(Runner, Protocol):
    """A runner that can look into its graph, to say what went wrong there."""

    def first_not_finite(self, ids: Ids) -> str | None:
        """What is NaN or infinite first on [T] token ids, by the tensor's name; None where it cannot be found."""
        ...


@runtime_checkable
class StandInRunner(Runner, Protocol):
    """A runner that answers as the artifact's own engine would, where that cannot run: its speed would mean nothing."""

    untimed: str  # why, such as "no CUDA device"
