"""What each command prints with ``--json``: the keys, their types and what they mean, as JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic reads the standard library's from Python 3.12 on only

from graftkit.architecture.dimensions import Dimensions
from graftkit.architecture.module_groups import ModuleGroup
from graftkit.architecture.peft.adapted import AdaptedGroup
from graftkit.checkpoint.changes import TensorChange, ValueChange
from graftkit.inspection import TableInspection
from graftkit.running.block_costs import BlockCosts
from graftkit.selftest.report import CleanRun, PlantedFault
from graftkit.verification.structural import LedgerEntry
from graftkit.verification.tensors import TensorDifference

closed = with_config(ConfigDict(extra="forbid"))

#: Name of a check -> one sentence for each thing that it found wrong.
FoundByCheck = Annotated[
    Mapping[str, list[str]], Field(description="name of each check that ran -> a sentence for each thing found wrong")
]
Failures = Annotated[list[str], Field(description="a sentence for each thing found wrong; empty where all is right")]
Verdict = Annotated[str, Field(description="one line where nothing was found wrong, else empty")]
Figures = Annotated[Mapping[str, Any], Field(description="name of each check -> what it measured")]
Notes = Annotated[list[str], Field(description="what is worth knowing and no failure")]


@closed
class ErrorJson(TypedDict):
    """Any command that ends with an error."""

    error: Annotated[list[str], Field(description="the lines of the error")]
    exit_code: Annotated[int, Field(description="the exit code of the process")]
    committed: Annotated[str | None, Field(description="the output that is in place and whole all the same, if one is")]


@closed
class InitJson(TypedDict):
    """`graftkit init MODEL`."""

    kind: Annotated[str, Field(description="what `--for` named")]
    written: Annotated[str | None, Field(description="the file that was written, if one was")]
    recipe: Annotated[Mapping[str, Any], Field(description="the recipe")]
    text: Annotated[str, Field(description="the recipe as YAML, with comments")]


@closed
class ValidateJson(TypedDict):
    """`graftkit validate RECIPE`."""

    valid: Annotated[bool, Field(description="true; a recipe that is not is an error")]
    operations: Annotated[list[str], Field(description="the operations in their order")]


@closed
class PromiseJson(TypedDict):
    """What a recipe promises; the same in plan and report."""

    strength: Annotated[str, Field(description="`bitwise`, `exact`, `rounded`, `bounded` or `intentional`")]
    observable: Annotated[str, Field(description="what stays")]
    domain: Annotated[str, Field(description="for which inputs")]
    assumptions: Annotated[list[str], Field(description="what has to hold besides")]
    measured: Annotated[
        str | None, Field(description="the class that the outputs were measured to be in, once they were")
    ]
    scope: Annotated[int, Field(description="flags of what the comparison of outputs leaves out; 0 for nothing")]
    kl: Annotated[
        Mapping[str, Any] | None, Field(description="the bound on the next-token distribution, once the rows are made")
    ]


@closed
class PlanJson(TypedDict):
    """`graftkit plan RECIPE`, and `apply --dry-run`."""

    base_model: Annotated[str, Field(description="the source, as the recipe names it")]
    revision: Annotated[str | None, Field(description="the commit of a hub id")]
    output: Annotated[str, Field(description="where `apply` would write")]
    promise: PromiseJson
    new_tokens: Annotated[Mapping[str, int], Field(description="content of each new token -> its id")]
    renamed_tokens: Annotated[Mapping[str, str], Field(description="old name of each renamed token -> its new one")]
    tensors: Annotated[list[TensorChange], Field(description="every tensor that is not taken over as it is")]
    values: Annotated[list[ValueChange], Field(description="every value of a JSON document that changes")]
    notes: Notes
    adapter: Annotated[
        Mapping[str, tuple[str, list[int]]] | None,
        Field(description="each tensor of the adapter -> its dtype and shape"),
    ]
    adapted_modules: Annotated[list[AdaptedGroup] | None, Field(description="what the adapter trains, by module")]
    trainable_parameters: Annotated[int | None, Field(description="how many numbers the adapter trains")]
    bytes_taken_over: Annotated[int, Field(description="bytes of shards that are taken over whole")]
    bytes_written: Annotated[int, Field(description="bytes of weights that are written anew")]
    memory: Annotated[int, Field(description="bytes of memory that `apply` takes on top of the libraries, about")]
    bytes_to_download: Annotated[int, Field(description="bytes of weights that `apply` will download from the hub")]
    left_behind: Annotated[Mapping[str, str], Field(description="each file that does not come along -> why")]


@closed
class ChangesJson(TypedDict):
    """What changed between source and result."""

    tensors: Annotated[list[TensorChange], Field(description="every tensor that was not taken over as it is")]
    values: Annotated[list[ValueChange], Field(description="every value of a JSON document that changed")]


@closed
class SourceJson(TypedDict):
    """The checkpoint that was operated on."""

    name: Annotated[str, Field(description="as the recipe names it")]
    revision: Annotated[str | None, Field(description="the commit of a hub id")]
    left_behind: Annotated[Mapping[str, str], Field(description="each file that did not come along -> why")]


@closed
class CheckedJson(TypedDict):
    """One line of the table of what was checked."""

    check: str
    result: str
    figure: str


@closed
class NotCheckedJson(TypedDict):
    """One thing that was not checked."""

    what: str
    why: str


@closed
class ApplyJson(TypedDict):
    """`graftkit apply RECIPE`; `graft_report.json` holds the same, with digests of the files."""

    graftkit: Annotated[int, Field(description="version of this layout")]
    in_memory: Annotated[bool, Field(description="whether a model in memory was operated on")]
    verdict: Annotated[str, Field(description="one line: what was verified")]
    promise: PromiseJson
    source: SourceJson
    inputs: Annotated[Mapping[str, Any], Field(description="the files that were read, with inode, size and time")]
    request: Annotated[
        Mapping[str, Any] | None,
        Field(
            description="the recipe's file: its values by digest, its paths and where they led; null for values from no file"
        ),
    ]
    versions: Annotated[Mapping[str, str], Field(description="of Python, of the libraries, and the kernels")]
    recipe: Annotated[str, Field(description="the resolved recipe as YAML")]
    new_tokens: Annotated[Mapping[str, int], Field(description="content of each new token -> its id")]
    renamed_tokens: Annotated[Mapping[str, Any], Field(description="old name of each renamed token -> the new token")]
    correspondence: Annotated[
        Mapping[str, Any], Field(description="which ids, blocks and modules of the result are which of the source")
    ]
    notes: Notes
    figures: Annotated[Mapping[str, Any], Field(description="place and name of each operation -> what it measured")]
    changes: ChangesJson
    ledger: Annotated[list[LedgerEntry], Field(description="every tensor of the result, with its SHA-256")]
    tokenization: Annotated[
        list[Mapping[str, Any]], Field(description="the comparison of tokenizers, where one changed")
    ]
    outputs: Annotated[Mapping[str, Any] | None, Field(description="the comparison of outputs")]
    outputs_not_compared: Annotated[str, Field(description="why outputs were not compared; empty where they were")]
    checks: Figures
    adapter: Annotated[Mapping[str, Any] | None, Field(description="config and bytes of the adapter")]
    not_covered: Annotated[
        list[str], Field(description="what a comparison covers of this class elsewhere, and not here")
    ]
    checked: Annotated[list[CheckedJson], Field(description="the table of what was checked")]
    not_checked: Annotated[list[NotCheckedJson], Field(description="what was left out, and how to ask for it")]


@closed
class UpToDateJson(TypedDict):
    """`graftkit apply --if-changed RECIPE` where there is nothing to do."""

    up_to_date: Annotated[bool, Field(description="true; else the recipe is applied")]
    output: Annotated[str, Field(description="the output that is up to date")]


@closed
class InspectJson(TypedDict):
    """`graftkit inspect MODEL`."""

    name: Annotated[str, Field(description="the checkpoint, as it was named")]
    architecture: Annotated[str, Field(description="transformers' class")]
    model_type: Annotated[str, Field(description="what the config calls its kind")]
    parameters: Annotated[int, Field(description="how many numbers the stored tensors hold")]
    nbytes: Annotated[int, Field(description="bytes of all stored tensors")]
    dtypes: Annotated[Mapping[str, int], Field(description="dtype -> how many tensors have it")]
    shards: Annotated[int, Field(description="how many files hold the tensors")]
    rows: Annotated[int, Field(description="rows of the vocabulary's tables")]
    tokens: Annotated[int, Field(description="ids of the tokenizer")]
    padding_rows: Annotated[int, Field(description="rows behind the tokenizer's ids")]
    tied: Annotated[bool, Field(description="whether input and output share one table")]
    config_paths: Annotated[list[str], Field(description="places of the config that hold the number of rows")]
    tables: Annotated[list[TableInspection], Field(description="every tensor that is indexed by the vocabulary")]
    special: Annotated[Mapping[str, str], Field(description="role -> token")]
    findings: Annotated[list[str], Field(description="what is worth knowing before training")]
    nonfinite: Annotated[list[str] | None, Field(description="tensors with NaN or infinity; null where nobody asked")]
    input: Annotated[str, Field(description="what the class is fed in the first place")]
    dimensions: Dimensions
    modules: Annotated[list[ModuleGroup], Field(description="what adapters can target")]
    chat_templates: Annotated[Mapping[str, int], Field(description="name of each chat template -> its characters")]
    model_max_length: Annotated[int | None, Field(description="the number of tokens after which the tokenizer cuts")]
    bytes_on_hub: Annotated[int, Field(description="bytes of weights that were left on the hub, and not looked at")]
    value_head: Annotated[str, Field(description="the tensors of value_head.safetensors; empty where there is none")]
    blocks: Annotated[BlockCosts | None, Field(description="what dropping each block costs; null where nobody asked")]


@closed
class DiffJson(TypedDict):
    """`graftkit diff A B`."""

    values: Annotated[list[ValueChange], Field(description="every value of a JSON document that differs")]
    tensors: Annotated[list[TensorDifference], Field(description="every tensor that differs")]
    equal: Annotated[int, Field(description="how many tensors are equal")]


class VerifyJson(TypedDict):
    """`graftkit verify A B`; with `--lens` and `--signal` their reports too, under these names."""

    difference: DiffJson
    tokenization: Annotated[Mapping[str, Any] | None, Field(description="the comparison of the tokenizers")]
    outputs: Annotated[Mapping[str, Any] | None, Field(description="the comparison of outputs")]
    accounted: Annotated[Mapping[str, Any] | None, Field(description="how B agrees with the report in its folder")]
    found: FoundByCheck
    failures: Failures
    verdict: Verdict
    rows: Annotated[int, Field(description="how many ids B has that A has not")]
    unjudged: Annotated[str, Field(description="why new rows were not judged; empty where they were")]
    vocabulary: Annotated[bool, Field(description="whether the class is fed token ids")]
    left_out: Annotated[list[str], Field(description="checks that were switched off")]


@closed
class OriginJson(TypedDict):
    """Whether a base is the one that an adapter was made for."""

    known_by: Annotated[str, Field(description="what tells that it is; empty where nothing does")]
    different: Annotated[list[str], Field(description="a sentence for each thing that tells that it is not")]
    unknown: Annotated[str, Field(description="why it is not known; empty where it is")]


@closed
class VerifyAdapterJson(TypedDict):
    """`graftkit verify --adapter DIR [A]`."""

    adapter: Annotated[str, Field(description="the folder of the adapter")]
    base: Annotated[str, Field(description="the base that it was checked on")]
    report: Annotated[str | None, Field(description="the report of the run that made it, if one lies there")]
    check: Annotated[Mapping[str, Any], Field(description="what was measured of the adapter")]
    identity: FoundByCheck
    origin: OriginJson
    notes: Notes
    verdict: Verdict
    found: FoundByCheck
    failures: Failures


@closed
class VerifyMergeJson(TypedDict):
    """`graftkit verify A B --adapter DIR`."""

    base: Annotated[str, Field(description="A")]
    merged: Annotated[str, Field(description="B")]
    adapter: Annotated[str, Field(description="the folder of the adapter")]
    known_by: Annotated[str, Field(description="what tells that A is the adapter's base; empty where nothing does")]
    unknown: Annotated[str, Field(description="why that is not known; empty where it is")]
    checks: Figures
    notes: Notes
    failures: Failures
    verdict: Verdict


@closed
class ReportJson(TypedDict):
    """`graftkit report DIR`."""

    page: Annotated[str, Field(description="the page that was written")]
    not_as_written: Annotated[
        list[str], Field(description="files that are not those of the report, of weight files by their headers")
    ]


@closed
class SelftestJson(TypedDict):
    """`graftkit selftest [MODEL]`."""

    model: Annotated[str, Field(description="the model that faults were planted into")]
    left_out: Annotated[list[str], Field(description="checks that were switched off")]
    faults: Annotated[list[PlantedFault], Field(description="every fault, and which checks saw it")]
    clean: Annotated[list[CleanRun], Field(description="every clean copy, and which checks flagged it")]
    seconds: Annotated[float, Field(description="seconds that it took")]
    verdict: Annotated[str, Field(description="one line: how many faults were caught, how many clean copies flagged")]
    failures: Failures


@closed
class CompletionJson(TypedDict):
    """`graftkit completion SHELL`."""

    shell: Annotated[str, Field(description="the shell")]
    script: Annotated[str, Field(description="what it reads to complete the command line")]


#: What stands for each command; some print one of several.
PRINTED: Mapping[str, tuple[Any, ...]] = {
    "init": (InitJson,),
    "validate": (ValidateJson,),
    "plan": (PlanJson,),
    "apply": (ApplyJson, UpToDateJson, PlanJson),
    "inspect": (InspectJson,),
    "diff": (DiffJson,),
    "verify": (VerifyJson, VerifyAdapterJson, VerifyMergeJson),
    "report": (ReportJson,),
    "selftest": (SelftestJson,),
    "completion": (CompletionJson,),
}


def printed_schema(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints with ``--json``, errors included."""
    kinds: Any = ErrorJson
    for kind in PRINTED[command]:
        kinds = kinds | kind
    schema = _with_words(TypeAdapter(kinds).json_schema(mode="serialization"))
    return {"title": f"graftkit {command} --json", **schema}


def _with_words(schema: Any) -> Any:
    """The same schema, where a number may be the word for one that is not finite."""
    if isinstance(schema, list):
        return [_with_words(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("type") == "number":
        rest = {key: value for key, value in schema.items() if key != "type"}
        return {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}], **rest}
    return {key: _with_words(value) for key, value in schema.items()}
