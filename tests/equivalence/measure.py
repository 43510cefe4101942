"""Write the largest differences, class by class, into docs/equality.json: `python -m tests.equivalence.measure`."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

from bertkit.core.progress import progress
from bertkit.core.variants import VARIANTS
from tests.equivalence import tf_side, torch_side
from tests.equivalence.runner import compared_outputs, is_transformers_bug
from tests.equivalence.test_frameworks import SWITCHES, differences, inputs_for, pair
from tests.fixtures.load import golden_cases, gradient_errors, output_errors

TARGET = Path(__file__).parents[2] / "docs" / "equality.json"


def main() -> None:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def note(name: str, column: str, errors: dict[str, float]) -> None:
        found[name][column] = max(found[name][column], *map(float, errors.values()))

    cases = [case for case in golden_cases("torch") if not is_transformers_bug(case)]
    for case in progress(cases, "against transformers", unit="case"):
        for side, name in ((torch_side, "torch"), (tf_side, "tf")):
            outputs, gradients, _ = side.run_case(case)
            note(case.class_name, f"{name}_outputs", compared_outputs(case, output_errors(case, outputs)))
            if case.gradients:
                note(case.class_name, f"{name}_gradients", gradient_errors(case, gradients))
    for variant, task, changes in progress(SWITCHES, "against each other", unit="case"):
        with tempfile.TemporaryDirectory() as directory:
            first, second = pair(variant, task, changes, directory)
            inputs = inputs_for(variant, task, changes)
            errors = differences(tf_side.run(second, inputs)[0], torch_side.run(first, inputs)[0])
            note(VARIANTS[variant].name + task, "torch_vs_tf", errors)
    rounded = {name: {column: float(f"{value:.2g}") for column, value in row.items()} for name, row in sorted(found.items())}
    TARGET.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
