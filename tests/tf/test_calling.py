"""How a model can be called: every form, every mode, and what a bad call says."""

from collections import UserDict
from types import MappingProxyType

import keras
import numpy as np
import pytest
import tensorflow as tf

from bertkit.core.errors import BertkitError, InputError
from tests import cases
from tests.tf.common import CLASSIFIERS, ENCODERS, assert_same, everything, make, model_class


class Encoding(dict):
    """What tokenizers give: a dictionary with attributes."""

    def __getattr__(self, name):
        return self[name]


FORMS = {
    "keywords": lambda model, x: model(**x),
    "list": lambda model, x: model(list(x.values())),
    "tuple": lambda model, x: model(tuple(x.values())),
    "positions": lambda model, x: model(*x.values()),
    "dict": lambda model, x: model(x),
    "encoding": lambda model, x: model(Encoding(x)),
    "userdict": lambda model, x: model(UserDict(x)),
    "mapping": lambda model, x: model(MappingProxyType(x)),
    "second by position": lambda model, x: model(x["input_ids"], x["attention_mask"], token_type_ids=x["token_type_ids"]),
    "dict and keyword": lambda model, x: model({k: x[k] for k in ("input_ids", "token_type_ids")},
                                               attention_mask=x["attention_mask"]),
    "Python numbers": lambda model, x: model(**{name: value.tolist() for name, value in x.items()}),
    "dict of Python numbers": lambda model, x: model({name: value.tolist() for name, value in x.items()}),
    "int32": lambda model, x: model({name: tf.constant(value, tf.int32) for name, value in x.items()}),
    "int64": lambda model, x: model({name: tf.constant(value, tf.int64) for name, value in x.items()}),
    "mixed integers": lambda model, x: model(tf.constant(x["input_ids"], tf.int32), *list(x.values())[1:]),
    "float mask": lambda model, x: model({**x, "attention_mask": x["attention_mask"].astype(np.float32)}),
    "boolean mask": lambda model, x: model({**x, "attention_mask": x["attention_mask"].astype(bool)}),
    "call": lambda model, x: model.call(**{name: tf.constant(value) for name, value in x.items()}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_inputs_mean_the_same(form):
    model, x = make("mobilebert", "ForSequenceClassification"), cases.features("mobilebert", lengths=(9, 4, 7))
    assert_same(FORMS[form](model, x), model(**{name: tf.constant(value) for name, value in x.items()}))


def test_a_bare_list_of_ids_is_input_ids():
    model = make("yoso")
    assert_same(model([[5, 6, 7]]), model(input_ids=np.array([[5, 6, 7]])))


def test_multiple_choice_takes_lists_in_its_own_order():
    model, x = make("ibert", "ForMultipleChoice"), cases.features("ibert", "ForMultipleChoice")
    ordered = [x["input_ids"], x["token_type_ids"], x["attention_mask"]]
    assert_same(model(ordered), model(x))


@pytest.mark.parametrize(("variant", "task"), cases.LOSSES)
def test_labels_and_tuples(variant, task):
    model, x = make(variant, task, num_hidden_layers=1), everything(variant, task)
    output = model(x)
    assert output.loss.shape == () and output.loss > 0
    with_keywords = model({k: v for k, v in x.items() if k in ("input_ids", "attention_mask")}, return_dict=False,
                          **{k: v.astype(np.int32) for k, v in x.items() if k not in ("input_ids", "attention_mask")})
    assert isinstance(with_keywords, tuple)
    assert_same(with_keywords, output.to_tuple())
    without = model(cases.features(variant, task))
    assert without.loss is None and "loss" not in without
    assert_same(without, {name: value for name, value in output.items() if name in without} | (
        {"past_key_values": without.past_key_values} if "past_key_values" in without else {}))


def test_labels_is_another_name_of_next_sentence_label():
    model, x = make("mobilebert", "ForNextSentencePrediction"), everything("mobilebert", "ForNextSentencePrediction")
    y = x.pop("next_sentence_label")
    assert_same(model(x, labels=y), model(x, next_sentence_label=y))


BAD = {
    "input_ids: given twice": lambda m, x: m(x, input_ids=x["input_ids"]),
    "attention_mask: given twice": lambda m, x: m(x["input_ids"], x["attention_mask"], attention_mask=x["attention_mask"]),
    "tokens: no argument": lambda m, x: m(x, tokens=1),
    "extra: no argument": lambda m, x: m({**x, "extra": x["input_ids"]}),
    "positional arguments": lambda m, x: m(*[x["input_ids"]] * 20),
    "got neither": lambda m, x: m(attention_mask=x["attention_mask"]),
    "got both": lambda m, x: m(x, inputs_embeds=np.zeros((3, 9, 16), np.float32)),
    r"input_ids: got shape \[9\]": lambda m, x: m(x["input_ids"][0]),
    "expected an integer dtype": lambda m, x: m(x["input_ids"].astype(np.float32)),
    "attention_mask: got shape": lambda m, x: m(x["input_ids"], np.ones((3, 5))),
    "token_type_ids: got shape": lambda m, x: m(x["input_ids"], token_type_ids=np.ones((3, 5), int)),
    "sequence length: got 40": lambda m, x: m(np.full((1, 40), 5)),
    "input_ids: got values from 3 to 99": lambda m, x: m(np.array([[3, 99]])),
    "input_ids: got values from -1": lambda m, x: m(np.array([[3, -1]])),
    "token_type_ids: got values": lambda m, x: m(x["input_ids"], token_type_ids=np.full((3, 9), 2)),
    "position_ids: got values": lambda m, x: m(x["input_ids"], position_ids=np.full((3, 9), 50)),
    "inputs_embeds: got width 5": lambda m, x: m(inputs_embeds=np.zeros((3, 9, 5), np.float32)),
    "head_mask: got shape": lambda m, x: m(x, head_mask=np.ones((5, 4), np.float32)),
    "labels: got shape": lambda m, x: m(x, labels=np.zeros(7, int)),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize(("variant", "task"), CLASSIFIERS)
def test_bad_calls_say_what_is_wrong(variant, task, message):
    with pytest.raises(InputError, match=message):
        BAD[message](make(variant, task, num_hidden_layers=1), cases.features(variant))


def test_every_problem_is_listed_at_once():
    model = make("megatron-bert", num_hidden_layers=1)
    with pytest.raises(InputError) as error:
        model(np.full((2, 3), 5), attention_mask=np.ones((2, 4)), token_type_ids=np.ones((3, 3), int))
    assert len(error.value.problems) == 2


def test_what_is_no_configuration_is_refused():
    with pytest.raises(BertkitError, match="takes a YosoConfig"):
        model_class("yoso")(cases.config("mobilebert"))


@pytest.mark.parametrize("wrong", [61, -1])
@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_ids_outside_the_vocabulary_raise_in_graphs_too(variant, task, wrong):
    model = make(variant, task, num_hidden_layers=1)
    graph = tf.function(lambda ids: model(ids).last_hidden_state, input_signature=[tf.TensorSpec([None, None], tf.int32)])
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(wrong)):
        graph(tf.constant([[5, wrong]]))


@pytest.mark.parametrize("variant", ["ibert", "mobilebert"])
def test_graphs_of_inputs_from_outside(variant):
    """What a function does not take as an argument is a constant of its graph, whose values are known."""
    model, ids, wrong = make(variant), tf.constant([[5, 6, 7]]), tf.constant([[5, 6, 61]])
    assert_same(tf.function(lambda: model(ids))(), model(ids), 1e-5)
    with pytest.raises(InputError, match="input_ids: got values from 5 to 61"):
        tf.function(lambda: model(wrong), autograph=False)()


@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_eager_graph_and_xla_agree(variant, task):
    model, x = make(variant, task, num_hidden_layers=1), everything(variant, task)
    signature = [{name: tf.TensorSpec([None] * value.ndim, value.dtype) for name, value in x.items()}]
    expected = model(x)
    for compiled in (False, True) if task == "Model" else (True,):
        call = tf.function(lambda inputs: model(inputs), input_signature=signature, jit_compile=compiled)
        assert_same(call(x), expected, 1e-5)


@pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
def test_every_kind_of_encoder_agrees_in_graphs(variant, changes):
    model = make(variant, **{**changes, "num_hidden_layers": 1})
    x = cases.features(variant, lengths=(9, 4, 7))
    flags = {"output_attentions": True, "output_hidden_states": True}
    signature = [{name: tf.TensorSpec([None, None], value.dtype) for name, value in x.items()}]
    call = tf.function(lambda inputs: model(inputs, **flags), input_signature=signature, reduce_retracing=True)
    assert_same(call(x), model(x, **flags), 1e-5)
    short = cases.features(variant, rows=1, length=4)
    assert_same(call(short), model(short, **flags), 1e-5)


@pytest.mark.parametrize(("variant", "task"), cases.CLASSES)
def test_padding_and_other_rows_change_nothing(variant, task):
    model = make(variant, task, num_hidden_layers=1)
    lengths = (9, 4, 7) if task != "ForMultipleChoice" else (9, 4, 7, 9, 5, 5)
    x = cases.features(variant, task, lengths=lengths)
    together = model(x)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in x.items()}
        if task != "ForMultipleChoice":
            alone = {name: value[:, : lengths[row]] for name, value in alone.items()}
        if variant == "mobilebert" and task != "ForMultipleChoice" and lengths[row] < 9:
            alone = {name: np.pad(value, ((0, 0), (0, 1))) for name, value in alone.items()}  # trigrams see the pad row
        for name, value in model(alone).items():
            if name != "past_key_values":
                own = together[name][row : row + 1]
                if name in cases.PER_TOKEN[task] if task in cases.PER_TOKEN else False:
                    own, value = own[:, : lengths[row]], value[:, : lengths[row]]
                assert_same(value, own, 1e-5)


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_a_row_without_tokens_is_finite(variant, task):
    model = make(variant, task)
    output = model(np.full((2, 4), 5), attention_mask=np.array([[0, 0, 0, 0], [1, 1, 0, 0]]), output_attentions=True)
    assert all(np.all(np.isfinite(value)) for value in (output.last_hidden_state, *output.attentions))


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_shapes_of_hidden_states_and_attentions(variant, task):
    output = make(variant, task)(cases.features(variant), output_hidden_states=True, output_attentions=True)
    width = output.last_hidden_state.shape[-1]
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 9, width)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 4, 9, 9)] * 2
    assert_same(output.hidden_states[-1], output.last_hidden_state)


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_embeddings_instead_of_ids(variant, task):
    model, x = make(variant, task), cases.features(variant)
    words = tf.gather(model.get_input_embeddings().embeddings.value, x["input_ids"])
    rest = {name: value for name, value in x.items() if name != "input_ids"}
    assert_same(model(inputs_embeds=words, **rest), model(x), 1e-6)


@pytest.mark.parametrize("variant", ["ibert", "megatron-bert", "mobilebert"])
def test_masks_of_rank_three(variant):
    model, x = make(variant), cases.features(variant, lengths=(9, 4, 7))
    mask = np.repeat(x["attention_mask"][:, None], 9, 1)
    assert_same(model({**x, "attention_mask": mask}), model(x), 1e-6)


# -- YOSO's hash functions ------------------------------------------------------------------------------------------
ATTENTIONS = [{}, {"use_expectation": False, "hash_seed": 0}, {"use_expectation": False, "hash_seed": 0, "conv_window": 3}]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "gaussian"])
def test_sampling_repeats_with_a_seed_of_its_own_or_of_everything(fast, mode):
    """That of TensorFlow or Keras decides where the model has none, but not in XLA; a graph that is traced anew begins anew."""
    x, options = cases.features("yoso"), {"num_hidden_layers": 1, "use_expectation": False, "use_fast_hash": fast}
    seeded, free = (make("yoso", hash_seed=seed, **options) for seed in (1, None))

    def two_calls(model):
        call = lambda: model(x).last_hidden_state  # noqa: E731
        call = call if mode == "eager" else tf.function(call, jit_compile=mode == "xla")
        return call().numpy(), call().numpy()

    first, second = two_calls(seeded)
    assert (first == second).all()
    for set_seed in (tf.random.set_seed, keras.utils.set_random_seed) if mode != "xla" else ():
        set_seed(3)
        first, second = two_calls(free)
        set_seed(3)
        again = two_calls(free)
        assert (again[0] == first).all() and (again[1] == second).all()
        assert (first != second).any()


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("changes", ATTENTIONS, ids=cases.name_of)
def test_yoso_takes_any_length_and_nothing(changes, graph):
    model = make("yoso", num_hidden_layers=1, **changes)

    def gradients(ids):
        with tf.GradientTape() as tape:
            hidden = model(ids).last_hidden_state
        return hidden, tape.gradient(hidden, model.embeddings.position_embeddings.trainable_variables)

    call = tf.function(gradients, input_signature=[tf.TensorSpec((None, None), tf.int32)]) if graph else gradients
    for shape in ((1, 1), (2, 17), (2, 0), (0, 5), (0, 0)):
        hidden, grads = call(tf.fill(shape, 5))
        assert hidden.shape == (*shape, 16) and np.isfinite(hidden).all()
        assert all(np.isfinite(tf.convert_to_tensor(grad)).all() for grad in grads)


@pytest.mark.parametrize("changes", ATTENTIONS, ids=cases.name_of)
def test_yoso_never_reads_what_padding_holds(changes):
    """Not even NaN, beside which a convolution lies, too; and a sequence of padding alone has finite gradients."""
    model, mask = make("yoso", num_hidden_layers=1, **changes), np.ones((3, 9), bool)
    mask[0, 2], mask[1] = False, False
    clean = np.random.default_rng(0).normal(size=(3, 9, 16)).astype(np.float32)
    dirty = clean.copy()
    dirty[0, 2] = np.nan
    with tf.GradientTape() as tape:
        clean, dirty = (model(inputs_embeds=x, attention_mask=mask).last_hidden_state for x in (clean, dirty))
        loss = tf.reduce_sum(clean**2)
    np.testing.assert_array_equal(clean.numpy()[mask], dirty.numpy()[mask])
    grads = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(tf.convert_to_tensor(grad)).all() for grad in grads if grad is not None)


def test_yoso_refuses_masks_of_rank_three():
    with pytest.raises(InputError, match="expected 2"):
        make("yoso")(np.full((1, 3), 5), attention_mask=np.ones((1, 3, 3)))


@pytest.mark.parametrize(("variant", "task"), ENCODERS)
def test_head_masks(variant, task):
    model, x = make(variant, task), cases.features(variant)
    heads = np.array([1, 0, 1, 0], np.float32)
    one = model(x, head_mask=heads)
    assert_same(model(x, head_mask=np.stack([heads, heads])), one)
    assert_same(model(x, head_mask=np.ones(4, np.float32)), model(x), 1e-6)
    assert np.abs(one.last_hidden_state - model(x).last_hidden_state).max() > 1e-3


LOSSLESS = [(v, t) for v, t in cases.LOSSES if t in ("ForMaskedLM", "ForTokenClassification", "ForCausalLM")]


@pytest.mark.parametrize(("variant", "task"), LOSSLESS)
def test_a_loss_without_labels_that_count_is_zero(variant, task):
    output = make(variant, task)(cases.features(variant), labels=np.full((3, 9), -100))
    assert output.loss.numpy() == 0


@pytest.mark.parametrize(("variant", "task"), CLASSIFIERS)
@pytest.mark.parametrize("kind", ["regression", "one value", "classes", "several"])
def test_losses_of_sequence_classification(variant, task, kind):
    count = 1 if kind == "one value" else 3
    model, x = make(variant, task, num_labels=count, num_hidden_layers=1), cases.features(variant)
    model.config.problem_type = "regression" if kind == "regression" else None
    y = {"regression": np.ones((3, 3), np.float32), "one value": np.ones(3, np.float32), "classes": np.array([0, 1, 2]),
         "several": np.array([[0, 1, 1]] * 3, np.float32)}[kind]
    output = model(x, labels=y)
    logits = np.asarray(output.logits, np.float64)
    expected = {
        "regression": lambda: np.mean((logits - 1) ** 2),
        "one value": lambda: np.mean((logits - 1) ** 2),
        "classes": lambda: np.mean(np.log(np.exp(logits).sum(1)) - logits[range(3), y]),
        "several": lambda: np.mean(np.log1p(np.exp(logits)) - logits * y),
    }[kind]()
    assert output.loss.numpy() == pytest.approx(expected, rel=1e-5)
    assert model.config.problem_type == ("regression" if kind == "regression" else None)


def test_spans_outside_the_sequence_do_not_count():
    model, x = make("megatron-bert", "ForQuestionAnswering"), cases.features("megatron-bert")
    far = model(x, start_positions=np.array([1, 99, 2]), end_positions=np.array([[3], [99], [4]]))
    kept = {name: value[[0, 2]] for name, value in x.items()}
    near = model(kept, start_positions=np.array([1, 2]), end_positions=np.array([3, 4]))
    assert_same(far.loss, near.loss, 1e-6)
