"""vLLM on the processor: greedy tokens of the base, and of the base with an adapter, are those of graftkit's environment."""

from __future__ import annotations

from pathlib import Path

from compared import Rows, main, references


def run(material: Path, _: Path, rows: Rows) -> None:
    """Serve the base with and without the LoRA."""
    from models import NEW_TOKENS, flat, ids
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    expected = references(material)
    for name in ("base", "pissa"):
        base = material / (name if (material / name / "config.json").exists() else "base")
        adapter = LoRARequest(name, 1, str(material / name / "adapter")) if name != "base" else None
        served = LLM(
            model=str(base), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=1, seed=0,
            enable_lora=adapter is not None, max_lora_rank=8, gpu_memory_utilization=0.2,  # of the machine's memory, which is not its own alone
        )  # fmt: skip
        greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, ignore_eos=True)
        prompts = [{"prompt_token_ids": each} for each in ids(base)]
        found = served.generate(prompts, greedy, lora_request=adapter)
        rows.equal(
            f"greedy tokens of {name}",
            flat([list(each.outputs[0].token_ids) for each in found]),
            expected[f"{name}/tokens"],
        )
        del served


if __name__ == "__main__":
    main(("transformers", "vllm"), run)
