"""Which classes the table of coverage holds, and what a comparison of one with itself covers now."""

from pathlib import Path

from support.families import FAMILIES, build
from support.tiny import build as build_tiny

TABLE = Path(__file__).parent.parent / "verification" / "coverage.json"

#: Beside the families: state-space models, hybrids of those with attention, and a decoder that is all convolution and attention.
CLASSES = (
    *FAMILIES, "MambaForCausalLM", "Mamba2ForCausalLM", "RwkvForCausalLM", "FalconH1ForCausalLM", "Qwen3NextForCausalLM",
    "Zamba2ForCausalLM", "Lfm2ForCausalLM", "ProphetNetForConditionalGeneration",
)  # fmt: skip


def measured(name, directory):
    """The coverage of a small checkpoint of this family or class, compared with itself."""
    from graftkit.verification.outputs import compare_outputs
    from graftkit.verification.subject import Subject

    if name in FAMILIES:
        build(name, directory)
    else:
        build_tiny(name, directory)
    return compare_outputs(Subject(directory, directory)).coverage
