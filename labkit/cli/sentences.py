"""What the commands share that take sentences: where they come from, which nets read them, and vectors under a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from labkit.models.sentence_encoder import SentenceEncoder, Tokens
    from labkit.net import IntegerNet

__all__ = ["check_reads_sentences", "embedded", "find_sentences", "reads_sentences", "refuse_sentences"]

_INPUTS = {"ids", "mask"}


def find_sentences(data: str, data_dir: Path | None, count: int) -> tuple[tuple[str, ...], str]:
    """Up to ``count`` sentences from what ``data`` names, spread evenly over it, and in a few words what they are.

    ``data`` is "stsb" (the development sentences of STS-B, looked for in ``data_dir`` first), a text file with a sentence a line,
    or "auto": STS-B where it is found, else the sentences that come with labkit.

    Raises
    ------
    DataError
        The sentences cannot be had.
    InputError
        ``data`` is none of these.
    """
    import numpy as np

    from labkit.data.sentence_pairs import load_sentence_pairs
    from labkit.data.sentences import read_sentences, shipped_sentences
    from labkit.errors import DataError

    if data in ("auto", "stsb"):
        try:
            pairs = load_sentence_pairs("dev", data_dir)
            every, source = tuple(dict.fromkeys(pairs.first + pairs.second)), "development sentences of STS-B"
        except DataError:
            if data == "stsb":
                raise
            every, source = shipped_sentences(), "sentences that come with labkit (STS-B was not found)"
    elif Path(data).suffix == ".txt" or Path(data).is_file():
        every, source = read_sentences(data), f"sentences of {data}"
    else:
        raise InputError(
            f"A network of sentences is calibrated on sentences: --data auto, stsb, or a text file with a sentence a line, got "
            f"{data!r}."
        )
    if len(every) > count:
        every = tuple(every[i] for i in np.linspace(0, len(every) - 1, count).astype(int))
    return every, source


def reads_sentences(net: IntegerNet) -> bool:
    """Whether ``net`` takes token numbers and a mask, as those that `quantize_encoder` makes do."""
    graph = net.graph
    return set(graph.inputs) == _INPUTS and graph["ids"].output.is_index


def check_reads_sentences(net: IntegerNet, file: Path) -> None:
    """Refuse a ``net``, read from ``file``, that is not one of MiniLM's tokens to hidden states.

    Raises
    ------
    InputError
        It takes or puts out something else, or knows other tokens.
    """
    from labkit.graph import int_ops
    from labkit.graph.lengths import length_of
    from labkit.models.sentence_encoder import EncoderSizes

    graph = net.graph
    shapes = [graph[name].output.shape for name in graph.outputs]
    fits = reads_sentences(net) and len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][0] == length_of(graph)
    if not fits:
        raise InputError(
            f"{file} is no sentence encoder: it takes {', '.join(graph.inputs)} and puts out "
            f"{', '.join(str(('N', *shape)) for shape in shapes)}, not ids and mask, and (N, length, width). Make one: "
            f"labkit quantize minilm -o minilm.lab."
        )
    tables = [
        node.op.weight.values for node in graph if isinstance(node.op, int_ops.Embedding) and "ids" in node.inputs
    ]
    known, needed = min(map(len, tables), default=0), EncoderSizes().vocabulary
    if known != needed:
        raise InputError(
            f"{file} knows {known:,} tokens, and MiniLM's tokenizer gives numbers of {needed:,}: the net has another tokenizer. "
            f"Use labkit run with token numbers of your own."
        )


def refuse_sentences(model: str, command: str) -> None:
    """Refuse the sentence encoder as the ``model`` of ``command``, which takes images.

    Raises
    ------
    InputError
        ``model`` is "minilm".
    """
    from labkit.models.zoo import MINILM

    if model == MINILM:
        raise InputError(
            f"{MINILM} reads sentences, and labkit {command} is for networks that take images. For {MINILM} there are labkit "
            f"quantize, verify, accuracy and embed."
        )


def embedded(
    network: IntegerNet | SentenceEncoder,
    sentences: Sequence[str],
    tell: Callable[[str, int, int], None],
    step: str,
    **how: Any,
) -> NDArray[np.float64]:
    """The unit vectors of ``sentences``, float64 [N, width].

    Parameters
    ----------
    network, how : as in `labkit.quantization.sentences.embed`
    sentences : one or more
    tell : called with (``step``, sentences done, all of them)
    step : what the progress bar is called

    Raises
    ------
    InputError, ModelError
        As `embed`.
    """
    from labkit.models.sentence_encoder import tokenize
    from labkit.quantization.sentences import embed_tokens

    tell(step, 0, len(sentences))

    def told() -> Iterator[Tokens]:
        done = 0
        for part in tokenize(sentences):
            yield part
            done += len(part.rows)  # the next one is asked for when this one has been worked on
            tell(step, done, len(sentences))

    return embed_tokens(network, told(), **how)
