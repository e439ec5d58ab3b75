"""Bodies of requests, with bounds that are checked before anything is allocated. Field names are OpenAI's.

A field that would be ignored is refused, unless its value asks for what is done anyway: see
`shoal.server.neutral`. Null means not given, everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, StringConstraints, model_validator

from shoal.config import CAREFUL_HELP, REFINE_HELP
from shoal.server.body import Body
from shoal.server.formats import Formatted
from shoal.server.neutral import without_neutral
from shoal.server.tools import Tooled
from shoal.server.turns import Turn
from shoal.tasks.forms import OUTPUT_FIELDS
from shoal.tasks.inputs import FIELDS as INPUT_FIELDS

Name = Annotated[str, Field(min_length=1, max_length=64, description="1 to 64 of a-z, 0-9, '.', '_', '-'")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
Description = Annotated[str, Field(min_length=1, max_length=4000, description="what the adapter shall do")]
Skill = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=500)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Weighted(Body):
    """One adapter of a mix."""

    name: Name
    weight: float = Field(1.0, ge=-10, le=10, description="factor of its delta weight")


class AdapterChoice(Body):
    """The adapter that answers, where `model` names none: exactly one of these.

    Where it names a library, `skill` names one of its skills, and `describe` asks for the nearest.
    """

    describe: Description | None = None
    skill: Name | None = None
    mix: list[Weighted] | None = Field(None, min_length=1, max_length=64)


class StreamOptions(Body):
    """Parts of a stream besides the answer."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _Generation(Formatted):
    """Fields that chats and completions have in common."""

    model: Annotated[
        str,
        Field(
            min_length=1, max_length=512, description="the base model, or the name of an adapter or library"
        ),
    ]
    adapter: AdapterChoice | Literal["auto"] | None = Field(
        None, description="an adapter by description or mix, or `auto` for the model's own experts"
    )
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="0 for the likeliest tokens. By default 1 for the base model and `auto`, and 0 for an "
        "adapter that was made for a task: a described one, or one whose card holds a description",
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 as the least above it: the likeliest token")
    top_k: int | None = Field(None, ge=0, le=2**20, description="an extension: 0 for all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | list[Annotated[str, Field(min_length=1, max_length=256)]]
        | None
    ) = Field(None, max_length=256)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        asked = without_neutral(given)
        if isinstance(asked.get("stop"), list):
            asked["stop"] = [stop for stop in asked["stop"] if stop not in ("", None)]
        if "best_of" in asked and asked["best_of"] == asked.get("n"):
            del asked["best_of"]
        return asked

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Tooled, _Generation):
    """`POST /v1/chat/completions`."""

    messages: list[Turn] = Field(min_length=1, max_length=256)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(_Generation):
    """`POST /v1/completions`; each prompt is continued as it is, without a chat template."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=100_000)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    max_tokens: int | None = Field(None, ge=0, le=2**20, description="0 only with echo")
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = Field(False, description="the prompt before the answer, with its own logprobs")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Texts or token ids, also where `prompt` is a single one."""
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return prompt if several else [prompt]


class Unsolved(Body):
    """An input in an object, under a name that files of inputs may use too."""

    input: Text = Field(validation_alias=AliasChoices(*INPUT_FIELDS))


class SolvedExample(Body):
    """A request of a task, and the answer that is right, or several that are."""

    input: Text
    output: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] = Field(
        validation_alias=AliasChoices(*OUTPUT_FIELDS), description="right, or several that are right"
    )


class NewAdapter(Body):
    """An adapter to be generated and kept."""

    name: Name
    description: Description
    public: bool = Field(False, description="others may use it")
    examples: list[SolvedExample] = Field(
        [], max_length=256, description="4 or more solved ones, to train the adapter on"
    )
    refine: bool = Field(True, description=REFINE_HELP)
    careful: bool = Field(False, description=CAREFUL_HELP)
    suggest: int = Field(
        0,
        ge=0,
        le=64,
        description="with examples and inputs: so many of the inputs are named that are worth labelling next",
    )
    inputs: list[Text | Unsolved] = Field(
        [],
        max_length=1024,
        description="4 or more requests without answers, as texts or as objects: where answers are closed "
        "they calibrate the labels, and the adapter is trained on its own calibrated answers",
    )
    sample_inputs: bool = Field(
        False,
        description="in place of `inputs`: those that the package ships, of the kind that fits the "
        "description best; for closed answers",
    )
    labels: list[Phrase] | None = Field(
        None,
        max_length=256,
        description="all answers there are, [] where they are open; by default read from the description",
    )

    @property
    def solved(self) -> list[tuple[str, str | list[str]]]:
        """The examples as pairs."""
        return [(example.input, example.output) for example in self.examples]

    @property
    def unsolved(self) -> list[str]:
        """The texts of the inputs."""
        return [given if isinstance(given, str) else given.input for given in self.inputs]


class NewAdapters(Body):
    """`POST /v1/adapters/batch`."""

    adapters: list[NewAdapter] = Field(min_length=1, max_length=1024)


class Publicity(Body):
    """`PATCH /v1/adapters/{name}`."""

    public: bool


class SkillText(Body):
    """`POST /v1/skills/detect`."""

    text: Annotated[str, StringConstraints(max_length=20_000)]


class CustomSkill(Body):
    """`POST /v1/skills`."""

    name: Skill
    keywords: list[Phrase] = Field([], max_length=64)
    description: Phrase | None = None
    examples: list[Phrase] = Field([], max_length=64)

    def definition(self) -> dict[str, Any]:
        """As skill detection takes it."""
        return self.model_dump(exclude={"name"}, exclude_defaults=True)
