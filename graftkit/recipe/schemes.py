"""How new rows are initialised: each scheme a word, or a mapping with fields.

Formulas stand with the code that computes them, in :mod:`graftkit.initializers.rows`.
"""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.choice import OneOf
from graftkit.recipe.fields import PathText, Text
from graftkit.recipe.spec import Spec

#: Hewitt's own. Where coordinates have a mean of 0.1 to 1 times their spread, 84 to 97 % of those of two new rows round
#: to the same bfloat16 at transformers' 1e-9, and 3 to 35 % at 1e-5. The expected ratio of a new token's mass is
#: multiplied by exp(eps·h'Σh/2): at most 1.0005 for logits with a standard deviation of up to 10.
MEAN_COV_EPS = 1e-5

#: The length of token distillation's first steps, as a share of the root mean square of the table's values. The paper's 1e-4 is
#: a hundredth of that of Llama 3, for a hundred snippets for each token; with few of them rows would hardly move.
RATE = 0.1


class SchemeSpec(Spec):
    """Base of all schemes."""

    def plain(self) -> object:
        """Return the bare word where no other field says anything."""
        written = self.plain_fields()
        return written["scheme"] if len(written) == 1 else written


class Mean(SchemeSpec):
    """The mean of the live rows: the smallest change of the next-token distribution, by Jensen's inequality."""

    scheme: Literal["mean"] = "mean"


class SubwordMean(SchemeSpec):
    """The mean of the rows of the token's old segmentation (FVT, Gee 2022)."""

    scheme: Literal["subword_mean"] = "subword_mean"


class Describe(SchemeSpec):
    """The mean of the rows of a description's tokens; without one, of the words in the token's own name."""

    scheme: Literal["describe"] = "describe"
    text: Annotated[
        Text | None,
        Field(
            description="What the token means, in a few words that the model knows; null means the words of its name."
        ),
    ] = None


class Copy(SchemeSpec):
    """A copy of an existing token's row."""

    scheme: Literal["copy"] = "copy"
    token: Annotated[Text, Field(description="The existing token, as the tokenizer spells it.")]


class MeanCov(SchemeSpec):
    """Normal with the live rows' mean and ``eps`` times their covariance (Hewitt 2021)."""

    scheme: Literal["mean_cov"] = "mean_cov"
    eps: Annotated[float, Field(gt=0, description="The share of the live rows' covariance.")] = MEAN_COV_EPS


class Normal(SchemeSpec):
    """Normal around zero with ``std``, or around the live rows' mean with their own spread."""

    scheme: Literal["normal"] = "normal"
    std: Annotated[
        float | None, Field(gt=0, description="The standard deviation; null matches mean and spread of the live rows.")
    ] = None


class Zeros(SchemeSpec):
    """Zeros."""

    scheme: Literal["zeros"] = "zeros"


class Distill(SchemeSpec):
    """The subword mean, then fitted to texts: hidden states as behind the old segmentation (token distillation, arXiv 2505.20133)."""

    scheme: Literal["distill"] = "distill"
    texts: Annotated[
        PathText,
        Field(description="Path of a .txt with a text a line, or of a .jsonl, .csv or .parquet with a field text."),
    ]
    learning_rate: Annotated[
        float | None,
        Field(gt=0, description=f"Adam's, at the beginning; null means {RATE} of the root mean square of the table."),
    ] = None
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Snippets of text in a step.")] = 16
    epochs: Annotated[int, Field(ge=1, le=1000, description="How often each snippet is seen.")] = 1
    snippet_len: Annotated[int, Field(ge=2, le=4096, description="Old tokens in a snippet, about.")] = 50
    snippets_per_token: Annotated[
        int, Field(ge=1, le=2**20, description="Snippets beyond this number are left out where each token has as many.")
    ] = 100


Scheme = Annotated[
    Mean | SubwordMean | Describe | Copy | MeanCov | Normal | Zeros,
    OneOf("scheme", "scheme", words=True),
]

#: Schemes of input rows alone: for the whole operation, and not for a single token.
InputScheme = Annotated[
    Mean | SubwordMean | Describe | Copy | MeanCov | Normal | Zeros | Distill,
    OneOf("scheme", "scheme", words=True),
]
