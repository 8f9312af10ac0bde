# python/halfbyte/transformers/engine.py
# SPDX-License-Identifier: Apache-2.0
"""halfbyte's forward pass behind the `generate` of Transformers."""

from __future__ import annotations

import copy
import errno
import functools
import inspect
import os
import threading
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from halfbyte import names, targets
from halfbyte._arguments import instance, whole
from halfbyte.errors import ArgumentError, DTypeError, ShapeError, UnsupportedError
from halfbyte.model import Model, load
from halfbyte.torch._dispatch import check_indices
from halfbyte.transformers.draw import draw_among_few
from halfbyte.transformers.sessions import (
    CACHE_NAME,
    SessionCache,
    only_cache,
    wrong_padding,
)

__all__ = ["EngineModel", "engine"]


class EngineModel(PreTrainedModel, GenerationMixin):
    """A model of Transformers whose forward pass is halfbyte's. Made by `engine`.

    `generate`, `pipeline` and assisted generation take it for an ordinary causal
    language model: sampling, beams, streamers, stopping criteria and logits processors
    are theirs. It has no parameters, so it cannot be trained, moved or saved.

    Attributes
    ----------
    core : halfbyte.Model
        The model that does the work.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        core: Model,
        generation_config: GenerationConfig | None = None,
        same_draws: bool = True,
    ) -> None:
        config = copy.deepcopy(config)
        # A loaded model chose these, and is asked whether it has what it chose.
        config._attn_implementation = config._experts_implementation = "eager"
        super().__init__(config)
        self.core = core
        if generation_config is not None:
            self.generation_config = generation_config
        self._same_draws = same_draws
        self._serves: weakref.ref[PreTrainedModel] | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where its logits are: on the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of its logits, whatever the weights are packed in."""
        return torch.float32

    def __repr__(self) -> str:
        """Name the file and its architecture."""
        return f"EngineModel({self.core!r})"

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: there are no parameters to save.

        Raises
        ------
        UnsupportedError
        """
        del args, kwargs
        raise UnsupportedError(
            f"{self.core!r}: an engine has no weights of its own - copy its files"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies find their class, which no module has, and pickles the refusal."""
        state = self.__dict__ | {"_serves": None}  # the model asks this one
        return _blank, (self.config.model_type,), state

    def detach(self) -> None:
        """Give the model that `engine` was called with its own `generate` back."""
        model = None if self._serves is None else self._serves()
        self._serves = None
        if model is not None:
            del _engines[model]
            del model.generate

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SessionCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        token_type_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        cache: SessionCache | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Run tokens, and return the logits that follow them.

        Parameters
        ----------
        input_ids : integer tensor, shape (B, T)
        attention_mask : tensor, shape (B, past + T), optional
            0 for padding on the left.
        position_ids : integer tensor, shape (B, T), optional
            Only what follows from the mask.
        past_key_values : SessionCache, optional
            What came before; a new one by default.
        labels : integer tensor, shape (B, T), optional
            For a loss of all columns, without gradients. -100 is left out.
        use_cache : bool, optional
            Whether to return the cache.
        logits_to_keep : int or integer tensor
            Only those of so many last columns, or of these columns. 0: all.
        token_type_ids, mm_token_type_ids : integer tensor, optional
            Only zeros: text.
        cache : SessionCache, optional
            `past_key_values` by its name in transformers from 5.24 on; in the outputs
            it has the name that the installed release gives it.
        num_items_in_batch : int or tensor, optional
            What a loss is divided by, as a Trainer says; the labels in it by default.
        **others
            Options of other models. None, False and absent are the same.

        Returns
        -------
        CausalLMOutputWithPast
            float32 logits, shape (B, columns kept, vocab_size), and the cache.

        Raises
        ------
        UnsupportedError
            If something other than the logits of text is asked for.
        ArgumentError, DTypeError, ShapeError
            If shapes, positions or ids do not fit.
        ContextOverflowError
            If a row becomes longer than the context.
        """
        for name, value in others.items():
            if value is not None and value is not False and name not in _PASSED_ALONG:
                raise UnsupportedError(f"{name}: {_TEXT_ALONE}")
        for name, value in (("token", token_type_ids), ("mm_token", mm_token_type_ids)):
            if value is not None and bool(value.any()):
                raise UnsupportedError(f"{name}_type_ids: {_TEXT_ALONE}")
        if self.training:
            raise UnsupportedError("the engine has no gradients - call eval() on it")
        if input_ids is None:
            raise ArgumentError("input_ids: expected some")
        _check_ids(input_ids)
        past = only_cache(cache, past_key_values)
        if past is None:
            past = SessionCache(self.core)
        if not isinstance(past, SessionCache) or past.model is not self.core:
            raise UnsupportedError(
                f"{CACHE_NAME}: found {past!r}; expected a SessionCache of this model"
            )
        columns = input_ids.shape[1]
        keep = columns
        if not isinstance(logits_to_keep, torch.Tensor):
            keep = min(whole(logits_to_keep, "logits_to_keep", 0) or columns, columns)
        needed = keep if labels is None else columns
        logits = past.run(input_ids, needed, attention_mask, position_ids)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        if isinstance(logits_to_keep, torch.Tensor):
            logits = logits[:, logits_to_keep]
        else:
            logits = logits[:, needed - keep :]
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True)
        kept: dict[str, Any] = {CACHE_NAME: past if use_cache else None}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept)

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Generate with the C++ forward pass; see `GenerationMixin.generate`.

        Raises
        ------
        UnsupportedError
            If something other than the logits of text is needed.
        DTypeError, ShapeError
            If what goes in is no integer tensor of shape (batch, tokens).
        """
        if reason := self._cannot(inputs, generation_config, kwargs):
            raise UnsupportedError(reason)
        if (past := _cache_in(kwargs)) is not None:
            kwargs = {k: v for k, v in kwargs.items() if k not in _CACHE_NAMES}
            kwargs[CACHE_NAME] = past
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        may = not (self._same_draws or generation_config.output_scores)
        may = may and generation_config.do_sample
        if may and (drawing := draw_among_few(logits_processor)) is not None:
            logits_processor, generation_config.do_sample = drawing, False
        with _torch_aside(len(input_ids)):
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                **kwargs,
            )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        del args, kwargs
        if (given := model_kwargs.get(CACHE_NAME)) is not None:
            given._is_user_defined = True  # it outlives the call
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = SessionCache(self.core)

    def _cannot(
        self,
        inputs: torch.Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: Mapping[str, Any],
    ) -> str | None:
        """Why the engine cannot do what `generate` is asked for. None if it can."""
        given = {name: value for name, value in kwargs.items() if value is not None}

        def asked(name: str) -> Any:
            """What `generate` makes of its arguments and of both configurations."""
            values = (
                given.get(name),
                getattr(generation_config, name, None),
                getattr(self.generation_config, name, None),
            )
            return next((value for value in values if value is not None), None)

        for name in sorted(given.keys() - _known_options()):
            return f"{name}: {_TEXT_ALONE}"
        for name in _MORE_THAN_LOGITS:
            if asked(name):
                return f"{name}: {_TEXT_ALONE}"
        chosen = getattr(generation_config, "cache_implementation", None)
        chosen = given.get("cache_implementation", chosen)
        past = _cache_in(kwargs)
        if chosen not in _OWN_CHOICES or not isinstance(past, _OWN_CACHES):
            return f"{chosen or type(past).__name__}: the engine keeps a SessionCache"
        assistant = type(given.get("assistant_model")).__name__
        if assistant.startswith(("Gemma4Assistant", "Gemma4UnifiedAssistant")):
            return (
                f"assistant_model: {assistant} reads keys and values of the model; "
                "halfbyte.load takes it as drafter="
            )
        ids, mask = given.get("input_ids", inputs), given.get("attention_mask")
        if ids is not None:
            _check_ids(ids)
        if mask is not None:
            instance(mask, "attention_mask", torch.Tensor, "a tensor")
        pad, ends = asked("pad_token_id"), asked("eos_token_id")
        ends = ends if isinstance(ends, list | tuple) else [ends]
        if mask is None and ids is not None and pad is not None and pad not in ends:
            mask = ids != pad  # as generate does, which says nothing about a hole
        return None if mask is None or mask.ndim != 2 else wrong_padding(mask != 0)


def _check_ids(ids: Any) -> None:
    """Demand ids of tokens; a text is for a tokenizer, which the engine has not."""
    if not isinstance(ids, torch.Tensor):
        raise DTypeError(
            "input_ids: expected an integer tensor of shape (batch, tokens), got "
            f"{type(ids).__name__} - tokenizer(text, return_tensors='pt').input_ids "
            "is one"
        )
    check_indices(ids, "input_ids")
    if ids.dim() != 2:
        got = tuple(ids.shape)
        raise ShapeError(f"input_ids: expected shape (batch, tokens), got {got}")


def _cache_in(options: Mapping[str, Any]) -> Any:
    return only_cache(*map(options.get, _CACHE_NAMES))


@contextmanager
def _torch_aside(rows: int) -> Iterator[None]:
    """Have torch compute with one thread, if there is but a row of logits a step.

    Its other threads wait for more work after each operation, for a millisecond, on
    the cores where the forward pass would run. That keeps the number torch had.
    """
    if rows > 1 or getattr(_own, "aside", False):
        yield
        return
    count = torch.get_num_threads()
    _own.aside = True
    try:
        with _lock:
            torch.set_num_threads(1)
            _for_new_threads(count)
        with targets.threads(targets.num_threads_or(count)):
            yield
    finally:
        _own.aside = False
        with _lock:
            torch.set_num_threads(count)


def _for_new_threads(count: int) -> None:
    """Have torch give threads that have not used it yet this number.

    They take the one that was set last, in whichever thread; each then has its own.
    """
    setter = threading.Thread(target=torch.set_num_threads, args=(count,))
    setter.start()
    setter.join()


_own = threading.local()
_lock = threading.Lock()  # between setting a thread's own number and that of new ones


_TEXT_ALONE = "not for the engine, which takes token ids and gives logits"
_MORE_THAN_LOGITS = (
    "output_attentions",
    "output_hidden_states",
    "assistant_early_exit",
    "use_mtp",
    "speculation_type",
)
_CACHE_NAMES = ("cache", "past_key_values")
_PASSED_ALONG = ("tokenizer", "assistant_tokenizer", "assistant_model")
_OWN_CACHES = (SessionCache, type(None))
# Older releases of transformers (5.5 to 5.10 at least) ask assistants for the last one.
_OWN_CHOICES = (None, "dynamic", "dynamic_full")


@functools.cache
def _known_options() -> frozenset[str]:
    """Everything that `EngineModel.generate` may be given by name."""
    known = {"tokenizer", "assistant_tokenizer", "trust_remote_code"}
    known |= inspect.signature(GenerationMixin.generate).parameters.keys()
    known |= inspect.signature(EngineModel.forward).parameters.keys()
    known |= vars(GenerationConfig()).keys()
    return frozenset(known - {"self", "kwargs", "others"})


# ---- making one


def engine(
    model: str | os.PathLike[str] | Model | PreTrainedModel,
    *,
    path: str | os.PathLike[str] | None = None,
    same_draws: bool = True,
    **options: Any,
) -> EngineModel:
    """Put halfbyte's C++ forward pass behind the `generate` of Transformers.

    Parameters
    ----------
    model : str, path-like, halfbyte.Model or PreTrainedModel
        What `halfbyte.load` takes, or what it gave; or a model of Transformers, whose
        `generate` runs in the engine from then on, until `EngineModel.detach`. Its
        weights in memory are not looked at: the files it was loaded from are read.
    path : str or path-like, optional
        Other files for a model of Transformers, such as a GGUF file of the same model.
    same_draws : bool
        Whether ``torch.manual_seed`` gives the tokens that it gives with Transformers'
        forward pass. False draws with the same probabilities, among the tokens alone
        that ``top_k`` keeps, which saves milliseconds a token of a large vocabulary.
    **options
        As for `halfbyte.load`.

    Returns
    -------
    EngineModel
        To be used like any model of Transformers.

    Raises
    ------
    ArgumentError
        If the arguments do not go together, or the files are of another model.
    FileNotFoundError
        If the files that a model of Transformers was loaded from are gone.
    FormatError, UnsupportedError, ModelError, OSError, ImportError
        As `halfbyte.load` does.

    Notes
    -----
    Threads are `torch.get_num_threads`, unless halfbyte was given a number: here, by
    `halfbyte.set_num_threads` or by the environment.

    What a model of Transformers cannot have from the engine, such as images or hidden
    states, it computes as before, and a warning says so once for each reason.
    """
    if not isinstance(model, PreTrainedModel):
        if isinstance(model, torch.nn.Module):
            raise ArgumentError(
                f"model: expected a PreTrainedModel, got {type(model).__name__}"
            )
        if path is not None:
            raise ArgumentError("path: only a model of Transformers takes other files")
        if isinstance(model, Model) and options:
            raise ArgumentError(f"{min(options)}: the model is loaded already")
        core = model if isinstance(model, Model) else load(model, **options)
        return _make(core, *_configs_of(core), same_draws)
    if isinstance(model, EngineModel):
        raise ArgumentError(f"model: {model!r} has an engine")
    core = load(_files_of(model) if path is None else path, **options)
    config = model.config.get_text_config(decoder=True)
    _compare(config, core)
    made = _make(core, config, model.generation_config, same_draws)
    _install(made, model)
    return made


def _make(
    core: Model,
    config: PreTrainedConfig,
    generation_config: GenerationConfig,
    same_draws: bool,
) -> EngineModel:
    made = _class_named_for(config.model_type)
    return made(config, core, generation_config, same_draws)


@functools.cache
def _class_named_for(model_type: str) -> type[EngineModel]:
    """Name the class as Transformers does: `pipeline` complains of names it has not."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return type(name if isinstance(name, str) else name[0], (EngineModel,), {})


def _blank(model_type: str) -> EngineModel:
    made = _class_named_for(model_type)
    return made.__new__(made)


def _configs_of(core: Model) -> tuple[PreTrainedConfig, GenerationConfig]:
    path = Path(core.report().path)
    folder = path.parent if path.suffix == ".safetensors" else path
    if folder.is_dir() and _is_known(folder):
        whole = AutoConfig.from_pretrained(folder)
        generation = GenerationConfig.from_model_config(whole)
        config = whole.get_text_config(decoder=True)
        config.name_or_path = str(path)
    else:
        config, generation = _configs_from_core(core, path)
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder)
    return config, generation


def _is_known(folder: Path) -> bool:
    """Whether this transformers has the architecture: 5.5 has not the 12B's."""
    raw, _ = PreTrainedConfig.get_config_dict(folder)
    return raw.get("model_type") in CONFIG_MAPPING


def _configs_from_core(
    core: Model, path: Path
) -> tuple[PreTrainedConfig, GenerationConfig]:
    """As much of a configuration as callers read; the engine has its own."""
    shape = core.config
    sliding = next((x for x in shape.layers if x.sliding), shape.layers[0])
    kinds = [
        "sliding_attention" if x.sliding else "full_attention" for x in shape.layers
    ]
    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.layers[0].ffn_len,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": sliding.num_kv_heads,
        "head_dim": sliding.head_dim,
        "layer_types": kinds,
        "sliding_window": shape.sliding_window,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_eps,
        "final_logit_softcapping": shape.logit_softcap or None,
    }
    ids = _token_ids(core)
    made = Gemma3TextConfig if shape.architecture == "gemma3" else Gemma4TextConfig
    config = made(**common, **ids, name_or_path=str(path))
    sampling = core.sampling
    return config, GenerationConfig(do_sample=bool(sampling), **sampling, **ids)


def _token_ids(core: Model) -> dict[str, Any]:
    if not core.has_tokenizer:
        return {}
    tokens = core.tokenizer
    return {
        "bos_token_id": tokens.bos_id,
        "pad_token_id": tokens.pad_id,
        "eos_token_id": [i for i in range(tokens.num_tokens) if tokens.is_end(i)],
    }


# ---- serving a model of Transformers

_engines: weakref.WeakKeyDictionary[PreTrainedModel, EngineModel] = (
    weakref.WeakKeyDictionary()
)


def _files_of(model: PreTrainedModel) -> Path:
    name = model.name_or_path
    advice = "name the files with path="
    if not name:
        raise ArgumentError(f"model: it was not loaded from files - {advice}")
    if names.is_path(name):
        found = Path(name)
    else:
        revision = getattr(model.config, "_commit_hash", None)
        found = names.resolve(name, revision=revision, local_files_only=True)
    if not found.exists():
        raise FileNotFoundError(
            errno.ENOENT,
            f"the model was loaded from files that are gone - {advice}",
            name,
        )
    return found


def _compare(config: PreTrainedConfig, core: Model) -> None:
    """Refuse files of another model than the one they are to stand in for."""
    for name, found in (
        ("num_hidden_layers", core.config.num_layers),
        ("hidden_size", core.config.hidden_size),
        ("vocab_size", core.config.vocab_size),
    ):
        expected = getattr(config, name)
        if found != expected:
            raise ArgumentError(
                f"path: files of another model: {name} is {found} there and {expected} "
                "in the model that is loaded"
            )


def _install(made: EngineModel, model: PreTrainedModel) -> None:
    """Give `model` a `generate` that asks the engine first."""
    warned: set[str] = set()

    def generate(
        self: PreTrainedModel,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        made.generation_config = self.generation_config
        reason = made._cannot(inputs, generation_config, kwargs)
        # Transformers notes its own adapters, PEFT those that it wraps a model in.
        if getattr(self, "_hf_peft_config_loaded", False) or hasattr(
            self, "peft_config"
        ):
            reason = "adapters: the engine has the weights of the files alone"
        size = self.config.get_text_config(decoder=True).vocab_size
        if size != made.core.config.vocab_size:
            reason = f"vocab_size: the files have {made.core.config.vocab_size} tokens"
        if reason is None:
            return made.generate(inputs, generation_config, *args, **kwargs)
        if reason not in warned:
            warned.add(reason)
            warnings.warn(f"{reason}; Transformers runs this itself", stacklevel=2)
        return type(self).generate(self, inputs, generation_config, *args, **kwargs)

    if model in _engines:
        _engines[model].detach()
    made._serves = weakref.ref(model)
    _engines[model] = made
    model.generate = types.MethodType(generate, model)  # a copy of the model binds it
