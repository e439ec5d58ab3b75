"""Frozen, validated settings: one schema for Python, YAML files and command-line flags.

Knows nothing of models or files. Modules below the product classes take plain arguments; configs stop at the
builders that read them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from shoal.errors import UsageError

TargetModules = tuple[str, ...]
# Names of tables that need torch, which this module does not load; a test compares them.
HeadName = Literal["L", "M", "S", "mixture", "modulation", "perceiver", "reader"]
RewardName = Literal["exact_match", "label", "numeric", "rouge_l", "format"]
DtypeName = Literal["float32", "bfloat16", "float16"]
MAX_WIDTH, MAX_COUNT = 2**16, 2**31  # beyond what any machine holds or finishes
MAX_ALPHA = 1e9  # of a LoRA
MIN_EXAMPLES = 4  # solved ones that refine a generated adapter
MANY_EXAMPLES = 100  # solved ones from which training on them alone does better than refining
MOST_SHOTS = 8  # solved ones that a hypernetwork can be trained to read behind a description
DEFAULT_MODEL = "smollm2-135m-instruct"  # an alias of `shoal.models.sources`
REFINE_HELP = (
    "train on the examples; without, only a network that was trained to read examples uses them, in one "
    "forward pass"
)
CAREFUL_HELP = "hold a quarter of the examples out and stop by them, even where refining was learned"
GUIDE_TARGET_MODULES: TargetModules = ("q_proj", "k_proj", "v_proj", "o_proj")


def first_mistake(error: ValidationError) -> tuple[str, str]:
    """(field, its value with the limit that it breaks) of the first mistake that pydantic found."""
    first = error.errors()[0]
    limit = first["msg"][:1].lower() + first["msg"][1:]
    return str(first["loc"][0]), f"{first['input']}: {limit}"


class Frozen(BaseModel):
    """Settings that are checked once and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Take fields by name.

        Raises:
            UsageError: a value outside its field's limits, or a name that is no field.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            name, mistake = first_mistake(error)
            fields = type(self).model_fields
            about = fields[name].description if name in fields else f"the fields are {', '.join(fields)}"
            raise UsageError(f"{type(self).__name__}: {name} {mistake}; change it ({about})") from None

    # So `model_validate` does not come through here: the command line names flags in its own message.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class TextToLoRAConfig(Frozen):
    """Shape of the adapters that a hypernetwork emits and of the hypernetwork itself."""

    hyper_network_size: int = Field(
        256, le=MAX_WIDTH, ge=1, description="width of the hypernetwork's last hidden layer"
    )
    skill_embeddings_dim: int = Field(
        128, le=MAX_WIDTH, ge=4, multiple_of=4, description="width of its encoder and trunk"
    )
    adapter_rank: int = Field(16, le=MAX_WIDTH, ge=1, description="LoRA rank")
    adapter_alpha: float = Field(
        32, le=MAX_ALPHA, gt=0, description="LoRA alpha; the delta weight is alpha / rank * B A"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the hypernetwork while it trains")
    num_layers_to_adapt: int | None = Field(
        8, le=MAX_WIDTH, ge=1, description="adapt the last N layers; none means all"
    )
    target_modules: TargetModules = Field(
        GUIDE_TARGET_MODULES, min_length=1, description="module roles or the model's own module names"
    )
    head: HeadName = Field(
        "L",
        description="output head: published L, M or S, mixture of learned bases, modulation of one, "
        "perceiver of tokens, or reader of the base model's states",
    )
    num_bases: int = Field(
        16, le=MAX_WIDTH, ge=1, description="bases of the mixture head, per layer and module type"
    )
    offset: bool = Field(True, description="learn one shared adapter and emit differences from it")


class Transformer2Config(Frozen):
    """Shape of singular-value experts and of their mixture."""

    expert_vector_dim: int | None = Field(
        128, le=MAX_WIDTH, ge=1, description="singular values kept; none means all"
    )
    num_expert_vectors: int = Field(8, le=MAX_WIDTH, ge=1, description="number of experts")
    adaptation_strength: float = Field(0.1, ge=0, description="scale of z - 1")
    adaptation_layers: tuple[int, ...] | None = Field(None, description="layers to adapt; none means all")


class LoraTrainingConfig(Frozen):
    """Optimisation of LoRA factors, for one task or for many at once."""

    steps: int = Field(300, le=MAX_COUNT, ge=1, description="optimiser steps")
    minutes: float | None = Field(
        None,
        gt=0,
        le=MAX_COUNT,
        allow_inf_nan=False,
        description="train for so many minutes of steps, over all sittings, instead of `steps`; monitoring "
        "and checkpoints come on top",
    )
    batch_size: int = Field(16, le=MAX_WIDTH, ge=1, description="examples per forward pass and process")
    accumulation: int = Field(1, le=MAX_WIDTH, ge=1, description="forward passes per optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps that warm up; linear decay after")
    warmup_steps: int | None = Field(
        None, ge=0, le=MAX_COUNT, description="steps that warm up, in place of a share of them"
    )
    decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the steps in which the rate falls, at the end, and is constant before; with "
        "--warmup-steps a short run is then the beginning of a long one. None means all after the warm-up",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    clip_norm: float = Field(1.0, gt=0, description="limit of the gradient norm")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    max_length: int = Field(
        256, le=MAX_COUNT, ge=8, description="tokens; longer examples are left out and counted"
    )
    examples_a_task: int = Field(
        1,
        ge=1,
        le=MAX_WIDTH,
        description="examples of one task that are drawn together; a hypernetwork gives them one adapter",
    )
    mix: Literal["tasks", "kinds"] = Field(
        "tasks", description="draw every task evenly, or balance kinds of answers, with many long rewrites"
    )
    length_exponent: float = Field(
        0.0, ge=0, le=1, description="an example's loss counts as its answer's tokens to this power"
    )
    clip_apart: bool = Field(
        False, description="limit the gradient norm of each group of parameters by itself"
    )
    average_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the running mean of the weights that is the result; 0 for none"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: slower, less memory")
    seed: int = Field(0, lt=2**63, ge=0, description="seed of initialisation, sampling and dropout")
    checkpoint_every: int = Field(100, le=MAX_COUNT, ge=1, description="steps between checkpoints")
    describe: bool = Field(False, description="put a task description in the prompt (a control)")

    @field_validator("warmup_steps")
    @classmethod
    def _counts_steps(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("minutes") is not None:
            raise ValueError("a run by the clock has no number of steps; give a share, `warmup`")
        return value


class HypernetworkTrainingConfig(LoraTrainingConfig):
    """Optimisation of a hypernetwork by SFT or by reconstruction of trained adapters."""

    objective: Literal["sft", "reconstruction"] = Field(
        "sft", description="what the hypernetwork learns from"
    )
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of the hypernetwork")
    offset_learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the shared adapter")
    contrastive_weight: float = Field(0.0, ge=0, description="weight of the wrong-description term")
    contrastive_share: float = Field(0.25, gt=0, le=1, description="share of the batch that the term uses")
    contrastive_margin: float = Field(1.0, gt=0, description="nats per token by which right must beat wrong")
    contrastive_siblings: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the wrong descriptions that are the same task's under other label names, where "
        "it has copies",
    )
    label_mass_weight: float = Field(
        0.0, ge=0, description="weight of the term that wants answers of label tasks to be some label"
    )
    description_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of rows given the null description"
    )
    nonsense: float = Field(
        0.0, ge=0, lt=1, description="share of rows given random letters or words instead of a description"
    )
    embedding_noise: float = Field(0.0, ge=0, description="standard deviation of noise on sentence vectors")
    token_dropout: float = Field(0.0, ge=0, lt=1, description="share of description tokens that are hidden")
    shots: int = Field(
        0,
        ge=0,
        le=MOST_SHOTS,
        description="solved examples that are read behind a description, at most; each time 0 to so many are "
        "drawn",
    )
    inner_steps: int = Field(
        0,
        ge=0,
        le=4,
        description="steps on other examples of its task that an adapter takes before its loss is asked, so "
        "that the network learns a start to be refined; 1 or 4",
    )
    inner_examples: int = Field(4, ge=1, le=32, description="of these other examples")
    inner_rate: float = Field(1e-3, ge=1e-6, le=1e-1, description="learning rate of these steps")
    rehearse: float = Field(
        0.0,
        ge=0,
        description="weight of the squared distance between the adapters of old descriptions now and at the "
        "start, so that a network takes new tasks and keeps the old ones",
    )
    rehearsed: int = Field(
        8, ge=1, le=MAX_WIDTH, description="old descriptions that are rehearsed in every forward pass"
    )
    fresh_share: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of the batches from tasks that are derived anew all the time, each used once",
    )
    fresh_workers: int = Field(
        0, ge=0, le=64, description="processes that derive them ahead of the training; 0 for its own"
    )


class EvolutionConfig(LoraTrainingConfig):
    """Training without gradients: a strategy proposes candidates and learns from what they earn."""

    population: int = Field(16, le=MAX_WIDTH, ge=4, description="of evolution: candidates per step")
    sigma: float = Field(0.02, gt=0, le=1, description="of evolution: first standard deviation of z")


class ExpertTrainingConfig(EvolutionConfig):
    """Optimisation of an expert's z by reinforcement learning, or on the right answers as a control."""

    objective: Literal["rloo", "expected_reward", "evolution", "sft"] = Field(
        "rloo",
        description="learn from sampled answers, from all labels of a closed set, by an evolution strategy, "
        "or from the right answers (a control)",
    )
    reward: RewardName = Field("exact_match", description="what an answer earns")
    learning_rate: float = Field(1e-2, gt=0, description="peak learning rate of z")
    describe: bool = Field(True, description="put a task description in the prompt")
    samples: int = Field(8, le=MAX_WIDTH, ge=2, description="answers that are sampled for a request")
    temperature: float = Field(
        1.0, ge=1e-3, description="of sampling; 1 makes the gradient exact in the mean"
    )
    max_new_tokens: int = Field(24, le=MAX_WIDTH, ge=1, description="limit of a sampled answer, in tokens")
    kl_weight: float = Field(
        0.02, ge=0, description="weight of the divergence from the base model; evolution knows none"
    )
    least_success: float = Field(0.05, ge=0, le=1, description="mean reward that the base must have to begin")
    most_success: float = Field(0.95, ge=0, le=1, description="mean reward above which there is no lesson")


class MixtureSearchConfig(Frozen):
    """Search for a mixture of experts by the cross-entropy method."""

    population: int = Field(32, le=MAX_WIDTH, ge=2, description="candidates per iteration")
    iterations: int = Field(50, le=MAX_COUNT, ge=1, description="rounds of sampling and refitting")
    elite: float = Field(
        0.25, gt=0, le=1, description="share of the candidates that the next round is fitted to"
    )
    per_layer: bool = Field(False, description="a mixture for every decoder layer instead of one for all")
    seed: int = Field(0, lt=2**63, ge=0, description="seed of the sampling")


class ServiceConfig(Frozen):
    """Limits of the service; each is checked before anything is allocated for a request."""

    max_body_bytes: int = Field(2**20, ge=1024, description="bytes of a request's body, uploads aside")
    max_upload_bytes: int = Field(2**27, ge=1024, description="bytes of an uploaded adapter")
    max_training_bytes: int = Field(2**24, ge=1024, description="bytes of uploaded training examples")
    max_tokens: int = Field(1024, ge=1, description="tokens of one answer")
    default_tokens: int = Field(256, ge=1, description="tokens of an answer where a request states no limit")
    max_choices: int = Field(8, ge=1, le=128, description="answers of one request, over all its prompts")
    max_rank: int = Field(128, ge=1, description="rank of an imported adapter, and of a mix")
    max_mix: int = Field(8, ge=1, description="adapters in one mix")
    max_generated: int = Field(64, ge=1, description="adapters of one batch of descriptions")
    max_adapters: int = Field(10_000, ge=1, description="versions of adapters that one owner may keep")
    max_stored_bytes: int = Field(2**34, ge=1, description="bytes of all adapters of one owner")
    max_custom_skills: int = Field(64, ge=1, description="custom skills of one owner")
    max_running: int = Field(16, ge=1, le=1024, description="answers that are generated together")
    max_waiting: int = Field(
        256, ge=1, description="requests that may wait for their turn; an owner has at most half of them"
    )
    max_open: int = Field(256, ge=1, description="HTTP requests that are open at once")
    max_open_a_key: int = Field(64, ge=1, description="HTTP requests of one owner that are open at once")
    requests_per_minute: int = Field(600, ge=1, description="HTTP requests of one owner")
    tokens_per_minute: int = Field(
        200_000, ge=1, description="tokens of one owner: prompts, and answers at their limit"
    )
    shared: bool = Field(
        False, description="count these two in the database, for all services that share it together"
    )
    cache_bytes: int = Field(2**29, ge=0, description="bytes of adapters kept in memory")
    max_jobs: int = Field(16, ge=1, description="training jobs that may wait or run")
    max_jobs_a_key: int = Field(8, ge=1, description="training jobs of one owner that may wait or run")
    max_steps: int = Field(2000, ge=1, description="steps of a training job")
    head_seconds: float = Field(15.0, gt=0, description="seconds that a client has for a request's headers")
    body_seconds: float = Field(
        30.0, gt=0, description="seconds that it has for the body, and one more for every 16 kB"
    )
    allowed_origins: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="origins whose pages may ask from a browser, such as http://localhost:3000; * for all",
    )
    send_seconds: float = Field(
        30.0, gt=0, description="seconds after which a client that does not read is left"
    )
    leaving_seconds: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="seconds that open requests have after SIGTERM; then they end with an error that says so",
    )
    retry_seconds: int = Field(5, ge=1, description="what Retry-After says where nothing better is known")


class EngineConfig(Frozen):
    """The engine that answers."""

    engine: Literal["own", "vllm"] = Field("own", description="answer here, or by a vLLM server")
    vllm_url: str | None = Field(
        None, description="where vLLM listens, such as http://127.0.0.1:8100; its key is in $VLLM_API_KEY"
    )
    vllm_adapters: int = Field(64, ge=1, description="adapters that are kept loaded in vLLM")
    dtype: DtypeName | None = Field(
        None, description="of the own engine's weights; none means what the device is fast in"
    )
