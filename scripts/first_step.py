"""Write docs/first_step.md: the forecast of one optimiser step beside the step itself, on the model that ships.

python scripts/first_step.py
"""

import tempfile
from pathlib import Path

import graftkit

ROOT = Path(__file__).parent.parent

HEAD = """# The first step of training

`verify: {first_step: true}` takes one step of training on a copy in float32, before the output appears, and reports three things:

- **Old gradients.** The loss over old texts and old ids alone has the same gradient in every old parameter as it had in the source. What
  counts as a difference is measured: the source's gradients are taken again with the loss scaled by 3, the rows of the batch reversed, and the
  logits summed in reverse and by a table of the result's size, none of which changes anything over the real numbers. A parameter fails
  that differs by more than 100 times the largest of these differences, or of the unit roundoff of the gradients in its module: what
  is zero in exact arithmetic, as the gradient of a key bias, is rounding alone.
- **New parameters.** Each new row and each new tensor has to have a gradient from the task's loss within three AdamW steps. One that has
  none is dead, is named, and fails. A zero head in front of a zero-B LoRA is sound: the head moves at step 0, B at step 1, A at step 2.
  A and B both zero wait for each other for ever. The row of the pad token is never trained, by the design of `torch.nn.Embedding`.
- **Forecast.** AdamW's first step is `-lr·g/(|g| + eps) - lr·wd·θ`. One Jacobian-vector product of the logits over the old ids along it
  predicts their change, and half its variance under the model's own distribution the KL. Beside it stands the step as it really is, at eight
  learning rates. The recommended ceiling is the largest of them up to which the forecast is within 20 % of the measurement; what lies below
  the change that one unit in the last place of every parameter makes is not judged.

The loss is that of the class: next token, naming each token, labels, places of an answer, or one number. A model without logits (an encoder
alone) is trained towards fixed noise, half the mean squared distance of its last hidden states to it, and its forecast is of
their relative change.

With an adapter the base is frozen and has no gradients to compare: what moves is the adapter. Of a zero-B LoRA the first step lies in B alone (A has
no gradient until B has moved), rows of new tokens move with it, and the forecast is that of this step. Parameters on modules that the batch does
not run are listed; A and B both zero fail by name.

All parameters are trained, eps is 1e-8 and weight decay 0.01. Figures below are for `recipes/quickstart.yaml`, made by
`scripts/first_step.py`.

| learning rate | measured KL (nats) | forecast KL (nats) | relative error |
|---|---|---|---|
"""


def main() -> None:
    """Apply the quickstart with the check, and write the page."""
    recipe = graftkit.load_recipe(ROOT / "recipes" / "quickstart.yaml", ["verify.first_step=true"])
    with tempfile.TemporaryDirectory() as room:
        values = recipe.model_copy(
            update={"output": f"{room}/out", "base_model": str(ROOT / "recipes" / "models" / "demo-lm")}
        )
        report = graftkit.apply(values.plain())
    found = next(check for check in report.checks if check.name == "first_step")
    rows = [f"| {s.learning_rate:g} | {s.measured:.3g} | {s.forecast:.3g} | {s.error:.1%} |" for s in found.steps]
    tail = (
        f"\nRecommended ceiling: {found.ceiling:g}. Old gradients: relative error {found.gradients.error:.2g},"
        f" the source's own noise up to {max(found.gradients.noise.values()):.1g}."
        f" New rows with a gradient: {sum(step is not None for step in found.moves.values())} of {len(found.moves)}.\n"
    )
    (ROOT / "docs" / "first_step.md").write_text(HEAD + "\n".join(rows) + "\n" + tail)


if __name__ == "__main__":
    main()
