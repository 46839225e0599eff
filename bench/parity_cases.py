"""The recipes on which smelt and mergekit are compared, and what is expected of each.

Models are named ``$a`` and replaced by their folders. Every case is expected to agree unless it says
otherwise: ``defect`` cases are those the peer is known to get wrong or to refuse, with the reason; ``random``
ones are compared by their statistics. Over 400 lines because it is a list of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: largest |difference| over the largest |value| of the peer's tensor
FP32 = 1e-5
BF16_STEP = 2.0**-7  # neighbouring bfloat16 values are at most this far apart, relative to the larger
FP16_STEP = 2.0**-10

Recipe = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One recipe and what is expected."""

    name: str
    recipe: Recipe
    family: str = "llama"
    kind: str = "agree"  # agree, refuse (both must), random (compared by statistics) or defect (may differ)
    why: str = ""
    tolerance: float = FP32


def m(name: str, **parameters: Any) -> dict[str, Any]:
    """One entry of ``models``."""
    return {"model": f"${name}", **({"parameters": parameters} if parameters else {})}


def recipe(method: str, *models: dict[str, Any], base: str = "", **rest: Any) -> Recipe:
    """A recipe in models form; ``parameters`` and other top-level keys by name."""
    document: Recipe = {"merge_method": method, "models": list(models)}
    if base:
        document["base_model"] = f"${base}"
    return document | {"dtype": "float32"} | rest


def piece(start: int, end: int, *models: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """One slice over layers [start, end) of every model."""
    return {"sources": [{**entry, "layer_range": [start, end]} for entry in models], **rest}


def sliced(method: str, *pieces: dict[str, Any], base: str = "", **rest: Any) -> Recipe:
    """A recipe in slices form."""
    document: Recipe = {"merge_method": method, "slices": list(pieces)}
    if base:
        document["base_model"] = f"${base}"
    return document | {"dtype": "float32"} | rest


def _linear() -> Iterator[Case]:
    a, b, c = m("a", weight=0.5), m("b", weight=0.3), m("c", weight=0.2)
    yield Case("linear, three weights", recipe("linear", a, b, c))
    yield Case(
        "linear, equal weights", recipe("linear", m("a", weight=1), m("b", weight=1), m("c", weight=1))
    )
    yield Case("linear, one model", recipe("linear", m("a", weight=0.7)))
    yield Case("linear, normalize off", recipe("linear", a, b, parameters={"normalize": False}))
    yield Case("linear, weights above one", recipe("linear", m("a", weight=3), m("b", weight=5)))
    yield Case("linear, a weight of zero", recipe("linear", a, m("b", weight=0), c))
    yield Case("linear, a negative weight", recipe("linear", m("a", weight=1.5), m("b", weight=-0.5)))
    yield Case("linear, one global weight", recipe("linear", m("a"), m("b"), parameters={"weight": 1}))
    yield Case(
        "linear, base_model and a global weight",
        recipe("linear", m("a"), m("b"), base="base", parameters={"weight": 1}),
    )
    yield Case("linear, gradient of two", recipe("linear", m("a", weight=[0, 1]), m("b", weight=[1, 0])))
    yield Case("linear, gradient of three", recipe("linear", m("a", weight=[0.1, 0.9, 0.3]), b))
    yield Case("linear, gradient of five", recipe("linear", m("a", weight=[0, 0.2, 1, 0.1, 0.7]), b))
    yield Case(
        "linear, filters",
        recipe(
            "linear",
            a,
            m(
                "b",
                weight=[
                    {"filter": "self_attn", "value": 0.9},
                    {"filter": "mlp", "value": [0.1, 0.6]},
                    {"value": 0.4},
                ],
            ),
        ),
    )
    yield Case(
        "linear, filter with a star", recipe("linear", a, m("b", weight=[{"filter": "*", "value": 0.2}]))
    )
    yield Case(
        "linear, filter falls through to the global level",
        recipe("linear", m("a", weight=[{"filter": "mlp", "value": 0.9}]), b, parameters={"weight": 0.5}),
    )
    yield Case("linear, weight as text", recipe("linear", m("a", weight="0.25"), b))
    yield Case("linear, untied head", recipe("linear", a, b), family="untied")
    yield Case(
        "linear, gradient and untied head", recipe("linear", m("a", weight=[0.2, 0.8]), b), family="untied"
    )
    yield Case("linear, 1-D biases", recipe("linear", a, b, c), family="qwen2")


def _slices() -> Iterator[Case]:
    a, b = m("a", weight=0.6), m("b", weight=0.4)
    yield Case(
        "slices, two with other weights",
        sliced("linear", piece(0, 2, a, b), piece(2, 4, m("a", weight=0.1), m("b", weight=0.9))),
    )
    yield Case(
        "slices, gradient restarts",
        sliced("linear", piece(0, 2, m("a", weight=[0, 1]), b), piece(2, 4, a, b)),
    )
    yield Case(
        "slices, parameters of the slice",
        sliced("linear", piece(0, 1, m("a"), m("b"), parameters={"weight": 0.3}), piece(1, 4, a, b)),
    )
    yield Case(
        "slices, overlapping layers (deeper model)", sliced("linear", piece(0, 3, a, b), piece(1, 4, a, b))
    )
    yield Case("slices, layers left out", sliced("linear", piece(0, 1, a, b), piece(3, 4, a, b)))
    yield Case(
        "slices, slerp with gradients",
        sliced(
            "slerp",
            piece(0, 4, m("a"), m("b")),
            base="a",
            parameters={
                "t": [
                    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                    {"value": 0.5},
                ]
            },
        ),
    )
    yield Case(
        "slices, one layer",
        sliced("slerp", piece(2, 3, m("a"), m("b")), base="a", parameters={"t": [0.1, 0.8]}),
    )


def _slices_with_bases() -> Iterator[Case]:
    yield Case(
        "slices, ties with the base listed",
        sliced(
            "ties",
            piece(0, 4, m("base"), m("a", weight=1, density=0.5), m("b", weight=1, density=0.5)),
            base="base",
        ),
    )
    yield Case(
        "slices, ties without the base among the sources",
        sliced(
            "ties", piece(0, 4, m("a", weight=1, density=0.5), m("b", weight=1, density=0.5)), base="base"
        ),
        kind="defect",
        why="the peer does not add base_model to slices and refuses; smelt adds it",
    )
    yield Case(
        "slices, each with its own base",
        {
            "merge_method": "task_arithmetic",
            "dtype": "float32",
            "slices": [
                piece(0, 2, m("base"), m("a", weight=1), base_model="$base"),
                piece(2, 4, m("c"), m("b", weight=1), base_model="$c"),
            ],
        },
    )


def _passthrough() -> Iterator[Case]:
    a, b = m("a", weight=0.6), m("b", weight=0.4)
    yield Case("passthrough, one model", recipe("passthrough", m("a")))
    yield Case("passthrough, stacked layers", sliced("passthrough", piece(0, 3, m("a")), piece(1, 4, m("b"))))
    yield Case(
        "passthrough, stacked and untied",
        sliced("passthrough", piece(0, 3, m("a")), piece(1, 4, m("b"))),
        family="untied",
    )
    yield Case(
        "passthrough, scaled copies",
        sliced(
            "passthrough",
            piece(0, 2, m("a")),
            piece(
                1,
                3,
                m(
                    "a",
                    scale=[
                        {"filter": "o_proj", "value": 0.0},
                        {"filter": "down_proj", "value": 0.0},
                        {"value": 1.0},
                    ],
                ),
            ),
            piece(3, 4, m("a")),
        ),
    )
    yield Case("passthrough, scale", recipe("passthrough", m("a", scale=0.5)))
    yield Case(
        "modules form",
        {"merge_method": "linear", "dtype": "float32", "modules": {"default": {"models": [a, b]}}},
    )


def _slerp() -> Iterator[Case]:
    for t in (0, 0.25, 0.5, 0.9, 1):
        yield Case(f"slerp, t = {t}", recipe("slerp", m("a"), m("b"), base="a", parameters={"t": t}))
    yield Case(
        "slerp, base second in the list", recipe("slerp", m("a"), m("b"), base="b", parameters={"t": 0.3})
    )
    yield Case("slerp, base not listed", recipe("slerp", m("b"), base="a", parameters={"t": 0.3}))
    yield Case("slerp, gradient", recipe("slerp", m("a"), m("b"), base="a", parameters={"t": [0, 0.3, 1]}))
    yield Case(
        "slerp, filters",
        recipe(
            "slerp",
            m("a"),
            m("b"),
            base="a",
            parameters={
                "t": [
                    {"filter": "self_attn", "value": [0, 1]},
                    {"filter": "norm", "value": 0.2},
                    {"value": 0.6},
                ]
            },
        ),
    )
    yield Case(
        "slerp, nearly parallel (straight line)",
        recipe("slerp", m("base"), m("near"), base="base", parameters={"t": 0.4}),
    )
    yield Case(
        "slerp, opposite (straight line)", recipe("slerp", m("a"), m("neg"), base="a", parameters={"t": 0.25})
    )
    yield Case(
        "slerp, a model of zeros",
        recipe("slerp", m("a"), m("zero"), base="a", parameters={"t": 0.5}),
        kind="defect",
        why="the peer takes a right angle to the zero vector (.707 of the model instead of .5)",
    )
    yield Case(
        "slerp, biases", recipe("slerp", m("a"), m("b"), base="a", parameters={"t": 0.35}), family="qwen2"
    )


def _nuslerp() -> Iterator[Case]:
    a, b = m("a", weight=0.3), m("b", weight=0.9)
    flat = {"nuslerp_flatten": False}
    columns = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    yield Case("nuslerp, weights", recipe("nuslerp", a, b))
    yield Case("nuslerp, equal weights", recipe("nuslerp", m("a", weight=1), m("b", weight=1)))
    yield Case("nuslerp, weights that cancel", recipe("nuslerp", m("a", weight=1), m("b", weight=-1)))
    yield Case("nuslerp, rows", recipe("nuslerp", a, b, parameters=flat))
    yield Case("nuslerp, columns", recipe("nuslerp", a, b, parameters=columns))
    yield Case("nuslerp, task vectors", recipe("nuslerp", a, b, base="base"))
    yield Case("nuslerp, task vectors by rows", recipe("nuslerp", a, b, base="base", parameters=flat))
    yield Case("nuslerp, task vectors by columns", recipe("nuslerp", a, b, base="base", parameters=columns))
    yield Case("nuslerp, gradient", recipe("nuslerp", m("a", weight=[1, 0]), m("b", weight=[0, 1])))
    yield Case("nuslerp, biases by rows", recipe("nuslerp", a, b, parameters=flat), family="qwen2")


def _spheres() -> Iterator[Case]:
    a, b, c = m("a", weight=0.5), m("b", weight=0.3), m("c", weight=0.2)
    yield Case("multislerp, two", recipe("multislerp", a, b))
    yield Case("multislerp, three", recipe("multislerp", a, b, c))
    yield Case(
        "multislerp, weights as they are",
        recipe("multislerp", m("a", weight=0.9), m("b", weight=0.7), parameters={"normalize_weights": False}),
    )
    yield Case("multislerp, task vectors", recipe("multislerp", a, b, c, base="base"))
    yield Case("multislerp, task vectors of two", recipe("multislerp", a, b, base="base"))
    yield Case("multislerp, eps", recipe("multislerp", a, b, c, parameters={"eps": 1e-3}))
    yield Case(
        "multislerp, three with one equal to the base",
        recipe("multislerp", m("base", weight=1), m("a", weight=1), m("b", weight=1), base="base"),
    )
    yield Case("karcher, two", recipe("karcher", m("a"), m("b")))
    yield Case("karcher, three", recipe("karcher", m("a"), m("b"), m("c")))
    yield Case("karcher, four", recipe("karcher", m("base"), m("a"), m("b"), m("c")))
    yield Case("karcher, one step", recipe("karcher", m("a"), m("b"), m("c"), parameters={"max_iter": 1}))
    yield Case(
        "karcher, more steps",
        recipe("karcher", m("a"), m("b"), m("c"), parameters={"max_iter": 50, "tol": 1e-7}),
    )
    yield Case("karcher, biases", recipe("karcher", m("a"), m("b"), m("c")), family="qwen2")
    yield Case("karcher, near copies", recipe("karcher", m("base"), m("near"), m("a")))


def _stock() -> Iterator[Case]:
    three = (m("a"), m("b"), m("c"))
    rows = {"filter_wise": True}
    yield Case("model_stock, two", recipe("model_stock", *three[:2], base="base"))
    yield Case("model_stock, three", recipe("model_stock", *three, base="base"))
    yield Case("model_stock, base listed", recipe("model_stock", m("base"), *three, base="base"))
    yield Case("model_stock, by rows", recipe("model_stock", *three, base="base", parameters=rows))
    yield Case("model_stock, two by rows", recipe("model_stock", *three[:2], base="base", parameters=rows))
    yield Case(
        "model_stock, biases by rows",
        recipe("model_stock", *three, base="base", parameters=rows),
        family="qwen2",
    )
    yield Case("model_stock, untied", recipe("model_stock", *three, base="base"), family="untied")
    yield Case("model_stock, nearly no change", recipe("model_stock", m("near"), m("a"), base="base"))


def _arithmetic() -> Iterator[Case]:
    a, b, c = m("a", weight=0.6), m("b", weight=0.4), m("c", weight=0.3)
    method = "task_arithmetic"
    yield Case(f"{method}, three", recipe(method, a, b, c, base="base"))
    yield Case(f"{method}, one", recipe(method, a, base="base"))
    yield Case(f"{method}, base listed", recipe(method, m("base"), a, b, base="base"))
    yield Case(
        f"{method}, base listed with a weight", recipe(method, m("base", weight=0.5), a, b, base="base")
    )
    yield Case(f"{method}, normalize", recipe(method, a, b, c, base="base", parameters={"normalize": True}))
    yield Case(f"{method}, lambda", recipe(method, a, b, base="base", parameters={"lambda": 0.5}))
    yield Case(f"{method}, lambda above one", recipe(method, a, b, base="base", parameters={"lambda": 1.7}))
    yield Case(
        f"{method}, normalize and lambda",
        recipe(method, a, b, base="base", parameters={"normalize": True, "lambda": 0.8}),
    )
    yield Case(f"{method}, negative weight", recipe(method, a, m("b", weight=-0.4), base="base"))
    yield Case(
        f"{method}, weights that sum to zero, normalize",
        recipe(method, m("a", weight=1), m("b", weight=-1), base="base", parameters={"normalize": True}),
    )
    yield Case(f"{method}, gradient", recipe(method, m("a", weight=[0, 0.5, 1]), b, base="base"))
    yield Case(
        f"{method}, filters",
        recipe(method, m("a", weight=[{"filter": "mlp", "value": 0.9}, {"value": 0.1}]), b, base="base"),
    )
    yield Case(
        f"{method}, lambda by filter",
        recipe(
            method,
            a,
            b,
            base="base",
            parameters={"lambda": [{"filter": "embed", "value": 0}, {"value": [0.5, 1]}]},
        ),
    )
    yield Case(f"{method}, int8_mask", recipe(method, a, b, base="base", parameters={"int8_mask": True}))
    yield Case(f"{method}, density has no effect", recipe(method, m("a", weight=1, density=0.3), base="base"))
    yield Case(f"{method}, untied", recipe(method, a, b, base="base"), family="untied")
    yield Case(f"{method}, biases", recipe(method, a, b, c, base="base"), family="qwen2")


def _two(density: Any = 0.5, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return m("a", weight=0.6, density=density, **more), m("b", weight=0.4, density=density, **more)


def _ties() -> Iterator[Case]:
    for density in (0.2, 0.5, 0.9, 1.0):
        yield Case(f"ties, density {density}", recipe("ties", *_two(density), base="base"))
    yield Case("ties, three", recipe("ties", *_two(), m("c", weight=0.3, density=0.5), base="base"))
    yield Case(
        "ties, own densities",
        recipe("ties", m("a", weight=1, density=0.3), m("b", weight=0.5, density=0.8), base="base"),
    )
    yield Case("ties, one model", recipe("ties", m("a", weight=0.5, density=0.5), base="base"))
    yield Case("ties, base listed", recipe("ties", m("base"), *_two(), base="base"))
    for name, settings in {
        "normalize off": {"normalize": False},
        "lambda": {"lambda": 0.5},
        "normalize off, lambda": {"normalize": False, "lambda": 1.5},
        "int8_mask": {"int8_mask": True},
        "rescale": {"rescale": True},
        "rescale, normalize off": {"rescale": True, "normalize": False},
        "global weight and density": {"weight": 1, "density": 0.4},
    }.items():
        models = (m("a"), m("b")) if "global" in name else _two()
        yield Case(f"ties, {name}", recipe("ties", *models, base="base", parameters=settings))


def _ties_varied() -> Iterator[Case]:
    yield Case(
        "ties, negative weight, normalize off",
        recipe(
            "ties",
            m("a", weight=1, density=0.5),
            m("b", weight=-0.5, density=0.5),
            base="base",
            parameters={"normalize": False},
        ),
    )
    yield Case(
        "ties, density gradient",
        recipe("ties", m("a", weight=1, density=[1, 0.7, 0.1]), m("b", weight=1, density=0.5), base="base"),
    )
    yield Case(
        "ties, density by filter",
        recipe(
            "ties",
            m("a", weight=1, density=[{"filter": "mlp", "value": 0.2}, {"value": 0.9}]),
            m("b", weight=1, density=0.5),
            base="base",
        ),
    )
    yield Case(
        "ties, weight gradient",
        recipe(
            "ties", m("a", weight=[0.1, 1], density=0.5), m("b", weight=[1, 0.1], density=0.5), base="base"
        ),
    )
    yield Case("ties, biases", recipe("ties", *_two(), base="base"), family="qwen2")
    yield Case("ties, untied", recipe("ties", *_two(), base="base"), family="untied")
    yield Case(
        "ties, a density that keeps no element of a norm",
        recipe("ties", *_two(0.01), base="base"),
        kind="defect",
        why="int(0.01 * 64) = 0 elements: the peer keeps one all the same, smelt exactly as many as asked",
    )


def _dare() -> Iterator[Case]:
    one, half = m("a", weight=1, density=0.5), m("b", weight=0.5, density=0.5)
    for method in ("dare_linear", "dare_ties"):
        full = (m("a", weight=0.6, density=1), m("b", weight=0.4, density=1))
        yield Case(f"{method}, density 1", recipe(method, *full, base="base"))
        yield Case(
            f"{method}, density 1, normalize and lambda",
            recipe(method, *full, base="base", parameters={"normalize": True, "lambda": 0.7}),
        )
        yield Case(f"{method}, one model", recipe(method, one, base="base"), kind="random")
        yield Case(f"{method}, two models", recipe(method, one, half, base="base"), kind="random")
        yield Case(
            f"{method}, rescale off",
            recipe(method, one, base="base", parameters={"rescale": False}),
            kind="random",
        )
        yield Case(
            f"{method}, low density",
            recipe(method, m("a", weight=1, density=0.1), base="base"),
            kind="random",
        )
        yield Case(
            f"{method}, normalize and lambda",
            recipe(method, one, half, base="base", parameters={"normalize": True, "lambda": 0.5}),
            kind="random",
        )


def _dtypes() -> Iterator[Case]:
    a, b = m("a", weight=0.3), m("b", weight=0.7)
    yield Case("out_dtype bfloat16", recipe("linear", a, b, out_dtype="bfloat16"), tolerance=BF16_STEP)
    yield Case("out_dtype float16", recipe("linear", a, b, out_dtype="float16"), tolerance=FP16_STEP)
    yield Case("no dtype at all", {"merge_method": "linear", "models": [a, b]})
    yield Case("out_dtype alone", {"merge_method": "linear", "models": [a, b], "out_dtype": "float32"})
    yield Case("bf16 inputs, float32 arithmetic and output", recipe("linear", a, b), family="bf16")
    yield Case(
        "bf16 inputs, ties in float32",
        recipe("ties", m("a", weight=1, density=0.5), base="base"),
        family="bf16",
        kind="defect",
        why="equal magnitudes at the threshold: the peer's sort decides which survive, smelt keeps the first",
    )
    yield Case(
        "bf16 inputs, out_dtype bfloat16",
        recipe("linear", a, b, out_dtype="bfloat16"),
        family="bf16",
        tolerance=BF16_STEP,
    )
    yield Case(
        "bf16 inputs, bf16 dtype",
        recipe("linear", a, b, dtype="bfloat16"),
        family="bf16",
        tolerance=2 * BF16_STEP,
        why="the peer rounds every intermediate to bf16, smelt once",
    )
    yield Case(
        "bf16 inputs, task_arithmetic in bf16",
        recipe("task_arithmetic", a, b, base="base", dtype="bfloat16"),
        family="bf16",
        tolerance=2 * BF16_STEP,
        why="the peer rounds every intermediate to bf16, smelt once",
    )
    yield Case(
        "bf16 inputs, slerp",
        recipe("slerp", m("a"), m("b"), base="a", dtype="bfloat16", parameters={"t": 0.4}),
        family="bf16",
        tolerance=BF16_STEP,
    )


def _refused() -> Iterator[Case]:
    a, b = m("a", weight=0.5), m("b", weight=0.5)
    yield Case(
        "a weight beside model instead of under parameters",
        {
            "merge_method": "linear",
            "dtype": "float32",
            "models": [{"model": "$a", "weight": 0.9, "parameters": {"weight": 0.1}}, b],
        },
        kind="defect",
        why="the peer ignores unknown keys, so the weight the user wrote is lost; smelt refuses",
    )
    yield Case(
        "a global parameter under a model",
        recipe(
            "ties", m("a", weight=1, density=0.5, normalize=False), m("b", weight=1, density=0.5), base="base"
        ),
        kind="defect",
        why="the peer ignores it silently; smelt refuses and says where it belongs",
    )
    yield Case("a single {value, filter}", recipe("linear", m("a", weight={"value": 0.3, "filter": "*"}), b))
    yield Case(
        "weights that sum to zero",
        recipe("linear", m("a", weight=1), m("b", weight=-1)),
        kind="defect",
        why="division by zero: the peer writes NaN or Inf, smelt refuses",
    )
    yield Case(
        "base_model in passthrough",
        recipe("passthrough", m("a"), base="base"),
        kind="defect",
        why="the peer adds the base as a second input and refuses; smelt ignores it",
    )
    yield Case(
        "base_model in karcher",
        recipe("karcher", m("a"), m("b"), base="base"),
        why="both take the base as one more model",
    )
    yield Case(
        "the same model twice in one slice",
        recipe("linear", m("a", weight=0.2), m("a", weight=0.8), m("b", weight=1)),
        kind="defect",
        why="the peer refuses; smelt adds the weights up",
    )
    yield Case(
        "fewer sources in the first slice",
        sliced("linear", piece(0, 2, a), piece(2, 4, a, b)),
        kind="defect",
        why="the peer sizes the inputs of the final norm by the first slice and drops models",
    )


def _refused_by_both() -> Iterator[Case]:
    a, b = m("a", weight=0.5), m("b", weight=0.5)
    yield Case("refused: unknown method", recipe("lineer", a, b), kind="refuse")
    yield Case("refused: slerp without t", recipe("slerp", m("a"), m("b"), base="a"), kind="refuse")
    yield Case("refused: ties without a base", recipe("ties", a, b), kind="refuse")
    yield Case(
        "refused: base_model without a weight in linear", recipe("linear", a, b, base="base"), kind="refuse"
    )
    yield Case("refused: linear without weights", recipe("linear", m("a"), m("b")), kind="refuse")
    yield Case(
        "refused: slices of unequal length",
        {
            "merge_method": "linear",
            "dtype": "float32",
            "slices": [{"sources": [{**a, "layer_range": [0, 2]}, {**b, "layer_range": [0, 3]}]}],
        },
        kind="refuse",
    )
    yield Case("refused: layers past the end", sliced("linear", piece(2, 9, a, b)), kind="refuse")
    yield Case("refused: unknown dtype", recipe("linear", a, b, dtype="bf17"), kind="refuse")
    yield Case(
        "refused: a missing model",
        recipe("linear", a, {"model": "./no-such-model", "parameters": {"weight": 1}}),
        kind="refuse",
    )
    yield Case(
        "refused: three models in slerp",
        recipe("slerp", m("a"), m("b"), m("c"), base="a", parameters={"t": 0.5}),
        kind="refuse",
    )
    yield Case("refused: an empty gradient", recipe("linear", m("a", weight=[]), b), kind="refuse")


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    groups = (
        _linear,
        _slices,
        _slices_with_bases,
        _passthrough,
        _slerp,
        _nuslerp,
        _spheres,
        _stock,
        _arithmetic,
        _ties,
        _ties_varied,
        _dare,
        _dtypes,
        _refused,
        _refused_by_both,
    )
    return [case for group in groups for case in group()]
