"""YOSO's kernels for GPUs against the oracle: on a GPU where there is one, and without one in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so it runs in a process of its own: this file is its program.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from bertkit import YosoConfig, YosoForSequenceClassification
from bertkit.core.native import use_kernels
from bertkit.core.reference import lsh as reference
from bertkit.kernels import lsh
from tests.core.test_native_lsh import Case, make

CASES = {
    "several sequences and heads": lambda: make(2, 2, 20, 25, 64, 64, 2, 3),
    "one row": lambda: make(1, 1, 1, 1, 64, 64, 3, 2),
    "no keys": lambda: make(1, 2, 3, 0, 64, 64, 3, 2),
    "no queries": lambda: make(1, 2, 0, 5, 64, 64, 3, 2),
    "odd widths": lambda: make(1, 2, 33, 50, 7, 37, 4, 2),
    "wide heads": lambda: make(1, 1, 20, 30, 150, 70, 3, 1),
    "hash functions of several transforms": lambda: make(1, 1, 40, 30, 32, 16, 33, 1),
    "full buckets": lambda: make(1, 1, 200, 260, 64, 64, 2, 2, clusters=2),
}
IN_PORTIONS = "several sequences and heads"
HALVES = (torch.bfloat16, torch.float16)
COUNT = 3000
"""More than they can count to."""
ROOT = Path(__file__).parents[2]
TRITON = next((tuple(map(int, found.version.split(".")[:2])) for found in metadata.distributions(name="triton")), None)
needs_triton = pytest.mark.skipif(TRITON is None or TRITON < (3, 7), reason="needs Triton 3.7 or newer")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def spoiled(case: Case) -> Case:
    """The same with NaN in the rows that nobody may read."""
    def spoil(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask[:, None, :, None], x, np.float32("nan"))

    return case._replace(query=spoil(case.query, case.query_mask), grad=spoil(case.grad, case.query_mask),
                         key=spoil(case.key, case.key_mask), value=spoil(case.value, case.key_mask))


def results(case: Case, device: str) -> dict[str, np.ndarray]:
    """What the public operations give."""
    query, key, value, grad, query_mask, key_mask, *_, signs = (torch.as_tensor(x, device=device) for x in case)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    query_codes, key_codes = lsh.fast_hash(query, query_mask, key, key_mask, case.num_hash, case.hash_code_len, signs)
    weighted = lsh.lsh_weighted_cumulation(query_mask, query_codes, grad, key_mask, key_codes, value, key,
                                           2**case.hash_code_len)
    context = lsh.yoso_sampling(*inputs, query_mask, key_mask, case.hash_code_len, case.num_hash, True, True, signs)
    context.backward(grad)
    found = {"query_codes": query_codes, "key_codes": key_codes, "weighted": weighted, "context": context}
    found |= {f"grad {number}": x.grad for number, x in enumerate(inputs)}
    return {name: x.detach().cpu().numpy() for name, x in found.items()}


def expected(case: Case) -> dict[str, np.ndarray]:
    """What the oracle gives."""
    codes = query_codes, key_codes = case.codes()
    queries, keys, capacity = (case.query_mask, query_codes), (case.key_mask, key_codes), 2**case.hash_code_len
    grads = reference.yoso_sampling_gradients(case.query, case.key, case.value, *case.masks, case.hash_code_len, *codes,
                                              case.grad)
    return {"query_codes": query_codes, "key_codes": key_codes,
            "weighted": reference.lsh_weighted_cumulation(*queries, case.grad, *keys, case.value, case.key, capacity),
            "context": reference.lsh_cumulation(*queries, *keys, case.value, capacity),
            **{f"grad {number}": grad for number, grad in enumerate(grads)}}


def counts(device: str, dtype: torch.dtype) -> np.ndarray:
    """Sums of ones, which are wrong where they are not float32."""
    codes, mask = torch.zeros(1, 1, COUNT, 1, dtype=torch.int32, device=device), torch.ones(1, COUNT, device=device)
    ones = torch.ones(1, 1, COUNT, 8, dtype=dtype, device=device)
    few = codes[:, :, :5], mask[:, :5]
    sums = lsh.lsh_cumulation(few[1], few[0], mask, codes, ones, 2)
    weighted = lsh.lsh_weighted_cumulation(few[1], few[0], ones[:, :, :5, :1], mask, codes, ones[..., :1], ones, 2)
    return torch.cat([sums, weighted]).float().cpu().numpy()


def everything(device: str) -> dict[str, np.ndarray]:
    from bertkit.kernels import lsh_triton

    found = {f"{name}/{key}": x for name, case in CASES.items() for key, x in results(spoiled(case()), device).items()}
    with mock.patch.object(lsh_triton, "LARGEST_TABLES", 1024):  # two groups and one hash function at a time
        portions = results(CASES[IN_PORTIONS](), device)
    return (found | {f"{IN_PORTIONS} in portions/{key}": x for key, x in portions.items()}
            | {str(dtype): counts(device, dtype) for dtype in HALVES})


def interpreted(file: Path) -> dict[str, np.ndarray]:
    subprocess.run([sys.executable, "-m", __name__, str(file)], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
                   check=True)
    return dict(np.load(file))


@pytest.mark.parametrize("device", [pytest.param("interpreter", marks=[needs_triton, pytest.mark.slow]),
                                    pytest.param("cuda", marks=needs_gpu)])
def test_results_are_those_of_the_oracle(device, tmp_path):
    found = everything("cuda") if device == "cuda" else interpreted(tmp_path / "found.npz")
    wanted = {f"{name}/{key}": x for name, case in CASES.items() for key, x in expected(case()).items()}
    wanted |= {f"{IN_PORTIONS} in portions/{key}": x for key, x in expected(CASES[IN_PORTIONS]()).items()}
    wanted |= {str(dtype): np.full((2, 1, 5, 8), torch.tensor(COUNT, dtype=dtype).item()) for dtype in HALVES}
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        tolerance = 0 if name.endswith("codes") else 1e-5 * max(1.0, np.abs(x).max(initial=0))
        np.testing.assert_allclose(found[name], x, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("count", "dtype"), [(1, torch.bfloat16), (2, torch.float32)])
def test_kernels_compile_without_a_gpu(count, dtype, monkeypatch, tmp_path):
    """The interpreter takes more than the compiler does. A number that is 1 is compiled in."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bertkit.kernels import lsh_triton

    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64"}
    launched = {}

    def record(kernel, programs, *arguments, num_warps=4, **constants):
        options = {"num_warps": num_warps, "enable_fp_fusion": True}
        signature = {}
        for parameter, argument in zip(kernel.params, arguments, strict=False):
            if isinstance(argument, torch.Tensor):
                signature[parameter.name] = types[argument.dtype]
            elif argument == 1 and not parameter.do_not_specialize:
                constants[parameter.name] = 1
            else:
                signature[parameter.name] = "i32"
        constexprs = {(kernel.arg_names.index(name),): x for name, x in constants.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        launched[kernel] = (ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs), options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lsh_triton, "_launch", record)
    x, mask = torch.zeros(count, count, count, 64, dtype=dtype), torch.ones(count, count)
    lsh_triton.hash_codes(x, mask, 9 * count, 9, torch.ones(count, 3, 2 * count, 64))
    codes = torch.zeros(count, count, count, count, dtype=torch.int32)
    lsh_triton.sampling_gradients(x, x, x, mask, mask, codes, codes, x, 9)
    assert len(launched) == 4
    for source, options in launched.values():
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assert compiled.asm["cubin"]
        assert "atom." not in compiled.asm["ptx"] and ".ftz" not in compiled.asm["ptx"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on this GPU")
def test_what_cannot_run_is_said_once():
    lsh._kernels_of_gpu.cache_clear()
    tensor = SimpleNamespace(device=torch.device("cuda", 0), is_cuda=True, dtype=torch.float32)
    with use_kernels("portable"):
        assert lsh._kernels(tensor, 9) is None
    with pytest.warns(UserWarning, match="portable kernels on cuda:0"):
        assert lsh._kernels(tensor, 9) is None
    assert lsh._kernels(tensor, 9) is None


# -- on a GPU -------------------------------------------------------------------------------------------------------
@needs_gpu
def test_results_repeat():
    case = CASES["full buckets"]()
    for one, other in zip(results(case, "cuda").values(), results(case, "cuda").values(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_gpu
def test_compiled_models_train_as_with_portable_kernels():
    torch.manual_seed(0)
    config = YosoConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        use_expectation=False, num_hash=8, hash_code_len=5, hash_seed=0, hidden_dropout_prob=0.0)
    model = YosoForSequenceClassification(config).cuda()
    inputs = {"input_ids": torch.randint(4, 50, (2, 300), device="cuda"), "labels": torch.tensor([0, 1], device="cuda")}

    def trained(function):
        model.zero_grad()
        function(**inputs).loss.backward()
        return [x.grad.clone() for x in model.parameters()]

    with use_kernels("portable"):
        wanted = trained(model)
    for function in (model, torch.compile(model, backend="aot_eager")):
        for mine, theirs in zip(trained(function), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    from bertkit.kernels import lsh_triton

    lsh._kernels = lambda x, hash_code_len: lsh_triton
    np.savez(sys.argv[1], **everything("cpu"))
