"""What lwlab relies on in nnsight, one minimal test each: a new version shows here what it changed.

Named after the reliance, written as plain `with` blocks, without lwlab's engine. The last test runs
this very file as a cell of a notebook, where nnsight finds the source of blocks in another way.
"""

from __future__ import annotations

import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lwlab.models import toys
from lwlab.tracing import _nnsight

ns = _nnsight.nnsight()
IDS = torch.tensor([[5, 17, 33, 8], [40, 3, 21, 77]])


@cache
def decoder(arch: str = "llama") -> Any:
    """A wrapped toy, and its plain logits."""
    module = toys.tiny(arch)[0]
    with torch.no_grad():
        z = module(IDS).logits
    return _nnsight.wrap(module, toys.tokenizer()), z


@cache
def net() -> Any:
    """A module of no known kind, with a submodule called `output`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
            self.output = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
            x = self.first(x)
            for block in self.blocks:
                x = x + block(input=x) * scale
            return {"z": self.output(x)}

    torch.manual_seed(0)
    return _nnsight.wrap(Net())


X = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]])


def test_any_module_can_be_wrapped_and_keeps_its_plain_forward() -> None:
    module = net()._module
    want = module.output(module.first(X))
    assert type(net()).__name__ == "NNsight"
    assert torch.equal(module(X, scale=0.0)["z"], want)


def test_a_loaded_transformers_model_is_wrapped_as_it_is() -> None:
    model, z = decoder()
    assert type(model).__name__ == "TransformersModel"
    assert type(model._module).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        assert torch.equal(model._module(IDS).logits, z)


def test_traced_logits_are_bit_for_bit_the_plain_ones() -> None:
    model, z = decoder()
    with torch.no_grad(), model.trace(IDS):
        got = ns.save(model.output.logits)
    assert torch.equal(got, z)


def test_keyword_inputs_go_to_forward_untouched() -> None:
    model, z = decoder()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with torch.no_grad():
        want = model._module(input_ids=IDS, attention_mask=mask).logits
        with model.trace(
            input_ids=IDS, attention_mask=mask, use_cache=False, logits_to_keep=torch.tensor([0, 2])
        ):
            said = ns.save(model.model.inputs)
            got = ns.save(model.output)
    assert torch.equal(got.logits, want[:, [0, 2]])
    assert got.past_key_values is None
    assert torch.equal(said[1]["input_ids"], IDS)
    with torch.no_grad(), net().trace(X, scale=0.0):
        z = ns.save(net().output)
    assert torch.equal(z["z"], net()._module(X, scale=0.0)["z"])


def test_input_is_the_first_tensor_given_by_place_or_by_name() -> None:
    with torch.no_grad(), net().trace(X):
        place = ns.save(net().first.input)
        name = ns.save(net().blocks[0].input)
        both = ns.save(net().blocks[1].inputs)
    assert torch.equal(place, X)
    assert torch.equal(name, net()._module.first(X))
    assert both[0] == ()
    assert list(both[1]) == ["input"]


def test_inputs_are_arguments_and_keywords() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS, use_cache=False):
        given = ns.save(model.model.layers[1].inputs)
    args, kwargs = given
    assert len(args) == 1
    assert {"attention_mask", "position_embeddings"} <= set(kwargs)
    with torch.no_grad():
        again = model._module.model.layers[1](*args, **kwargs)
    assert again.shape == (2, 4, 32)


def test_output_is_what_the_module_returned_tuples_included() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS):
        attention = ns.save(model.model.layers[0].self_attn.output)
        block = ns.save(model.model.layers[0].output)
    assert isinstance(attention, tuple)
    assert attention[0].shape == block.shape == (2, 4, 32)


def test_lists_of_modules_are_reached_by_their_names() -> None:
    model, _ = decoder()
    here = _nnsight.envoy(model, "model.layers.1.mlp.down_proj")
    assert here._module is model._module.model.layers[1].mlp.down_proj
    assert _nnsight.envoy(model, "") is model


def test_a_submodule_called_output_is_moved_to_e_output() -> None:
    with torch.no_grad(), net().trace(X):
        inner = ns.save(_nnsight.envoy(net(), "output").output)
        whole = ns.save(net().output)
    assert _nnsight.envoy(net(), "output")._module is net()._module.output
    assert torch.equal(inner, whole["z"])
    bert = _nnsight.wrap(toys.tiny("bert")[0])
    assert _nnsight.envoy(bert, "encoder.layer.0.output")._module.dense is not None


def test_an_assigned_output_replaces_it() -> None:
    model, z = decoder()
    with torch.no_grad(), model.trace(IDS):
        out = model.model.layers[0].output
        model.model.layers[0].output = out * 2
        seen = ns.save(model.model.layers[1].input)
        h = ns.save(out)
        got = ns.save(model.output.logits)
    assert torch.equal(seen, h * 2)
    assert not torch.equal(got, z)


def test_an_assigned_tuple_replaces_one() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS):
        before = ns.save(model.model.layers[0].input)
        out = model.model.layers[0].self_attn.output
        model.model.layers[0].self_attn.output = (torch.zeros_like(out[0]), *out[1:])
        after = ns.save(model.model.layers[0].post_attention_layernorm.input)
    assert torch.equal(before, after)


def test_an_assigned_input_replaces_the_first_tensor_by_place_or_by_name() -> None:
    with torch.no_grad(), net().trace(X):
        x = net().first.input
        net().first.input = x * 0
        first = ns.save(net().blocks[0].input)
        y = net().blocks[1].input
        net().blocks[1].input = y * 0
        made = ns.save(net().blocks[1].output)
    module = net()._module
    assert torch.equal(first, module.first.bias.expand(2, 3))
    assert torch.equal(made, module.blocks[1].bias.expand(2, 3))


def test_the_root_output_can_be_changed_in_place_and_replaced() -> None:
    model, z = decoder()
    with torch.no_grad(), model.trace(IDS):
        model.output.logits = model.output.logits * 2
        got = ns.save(model.output.logits)
    assert torch.equal(got, z * 2)
    with torch.no_grad(), net().trace(X):
        net().output = {"z": net().output["z"] * 0}
        z = ns.save(net().output)
    assert not z["z"].any()


def test_a_write_in_place_reaches_all_who_share_the_tensor() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS):
        norm = model.model.layers[1].post_attention_layernorm
        h = norm.input
        h.copy_(h * 0)
        mlp = ns.save(model.model.layers[1].mlp.output)
        out = ns.save(model.model.layers[1].output)
    assert torch.equal(out, mlp)  # resid_mid was zero for the residual too


def test_edits_and_reads_of_one_place_see_each_other_in_order() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS):
        here = model.model.layers[0]
        first = ns.save(here.output)
        here.output = first + 1
        second = ns.save(here.output)
        here.output = second + 1
        third = ns.save(here.output)
    assert torch.equal(second, first + 1)
    assert torch.equal(third, second + 1)


def test_a_dict_made_and_filled_inside_comes_out_with_all_it_holds() -> None:
    model, _ = decoder()

    def fill(out: dict[Any, Any]) -> None:  # a helper reads through the model, as lwlab's does
        for i, block in enumerate(model.model.layers):
            out[i] = block.output
        out["logits"] = model.output.logits

    with torch.no_grad(), model.trace(IDS):
        kept: dict[Any, Any] = ns.save({})
        fill(kept)
        lost = model.output.logits
    assert list(kept) == [0, 1, 2, "logits"]
    assert all(isinstance(value, torch.Tensor) for value in kept.values())
    assert "lost" not in locals()


def test_stop_ends_the_pass_after_the_last_site_and_keeps_what_was_saved() -> None:
    model, _ = decoder()
    ran = []
    handles = [
        b.register_forward_hook(lambda *_: ran.append(1)) for b in model._module.model.layers
    ]
    try:
        with torch.no_grad(), model.trace(IDS) as tracer:
            h = ns.save(model.model.layers[0].output)
            tracer.stop()
    finally:
        for handle in handles:
            handle.remove()
    assert h.shape == (2, 4, 32)
    assert len(ran) <= 1


def test_skip_leaves_a_module_out_and_puts_a_value_in_its_place() -> None:
    model, _ = decoder()
    ran = []
    handle = model._module.model.layers[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    try:
        with torch.no_grad(), model.trace(IDS):
            args, _ = model.model.layers[1].inputs  # arguments can be had before the skip
            model.model.layers[1].skip(args[0] * 2)
            after = ns.save(model.model.layers[2].input)
            before = ns.save(args[0])
    finally:
        handle.remove()
    assert not ran
    assert torch.equal(after, before * 2)


def test_modules_can_be_called_out_of_band_inside_a_trace() -> None:
    model, z = decoder()
    with torch.no_grad(), model.trace(IDS):
        args, kwargs = model.model.layers[2].inputs
        envoy = model.model.layers[0](args[0], **kwargs)  # no event of the pass
        plain = model._module.model.layers[0](args[0], **kwargs)
        lens = ns.save(model._module.lm_head(model._module.model.norm(args[0])))
        pair = ns.save([envoy, plain])
        got = ns.save(model.output.logits)
    assert torch.equal(*pair)
    assert lens.shape == z.shape
    assert torch.equal(got, z)


def test_torch_hooks_set_after_wrapping_act_in_and_out_of_a_trace() -> None:
    model, z = decoder()
    mlp = model._module.model.layers[1].mlp
    handle = mlp.register_forward_hook(lambda m, a, out: out * 0)
    try:
        with torch.no_grad():
            want = model._module(IDS).logits
            with model.trace(IDS):
                args, kwargs = model.model.layers[1].inputs
                mid = ns.save(model.model.layers[1].post_attention_layernorm.input)
                out = ns.save(model.model.layers[1].output)
                again = ns.save(model.model.layers[1](args[0], **kwargs))
                got = ns.save(model.output.logits)
    finally:
        handle.remove()
    assert torch.equal(mid, out)
    assert torch.equal(again, out)
    assert torch.equal(got, want)
    assert not torch.equal(want, z)


def test_gradients_are_on_where_torch_has_them_on_and_flow_to_what_was_read() -> None:
    model, _ = decoder()
    with torch.no_grad(), model.trace(IDS):
        off = ns.save(model.model.layers[0].output)
    with torch.enable_grad(), model.trace(IDS):
        on = ns.save(model.model.layers[0].output)
        z = ns.save(model.output.logits)
    (slope,) = torch.autograd.grad(z[0, -1, 5], on)
    assert not off.requires_grad
    assert bool(slope[0].any())
    assert not slope[1].any()


def test_an_edit_is_kept_in_a_copy_and_replayed_there_alone() -> None:
    model, z = decoder()
    with model.edit() as (_, edited):
        h = edited.model.layers[0].output
        edited.model.layers[0].output = h * 2
    with torch.no_grad():
        with model.trace(IDS):
            plain = ns.save(model.output.logits)
        with edited.trace(IDS):
            seen = ns.save(edited.model.layers[1].input)
            changed = ns.save(edited.output.logits)
        with edited.trace(IDS):
            again = ns.save(edited.output.logits)
        bare = edited._module(IDS).logits
    assert edited is not model
    assert edited._module is model._module
    assert torch.equal(plain, z)
    assert torch.equal(bare, z)
    assert torch.equal(changed, again)
    assert not torch.equal(changed, z)
    with torch.no_grad(), model.trace(IDS):
        h = ns.save(model.model.layers[0].output)
    assert torch.equal(seen, h * 2)


def test_clear_edits_takes_them_back() -> None:
    model, z = decoder()
    with model.edit() as (_, edited):
        edited.model.layers[0].output = edited.model.layers[0].output * 2
    edited.clear_edits()
    with torch.no_grad(), edited.trace(IDS):
        got = ns.save(edited.output.logits)
    assert torch.equal(got, z)


def test_an_edit_with_functions_called_from_it_grafts_gradients() -> None:
    model, z = decoder()

    def apply(view: Any) -> None:
        h = view.model.layers[0].output
        view.model.layers[0].output = h + (h - h.detach())

    with model.edit() as (_, edited):
        apply(edited)
    with torch.enable_grad(), edited.trace(IDS):
        h = ns.save(edited.model.layers[0].input)
        twice = ns.save(edited.output.logits)
    with torch.enable_grad(), model.trace(IDS):
        h0 = ns.save(model.model.layers[0].input)
        once = ns.save(model.output.logits)
    assert torch.equal(twice, z)
    got, want = (torch.autograd.grad(y[0, -1, 5], x)[0] for y, x in ((twice, h), (once, h0)))
    assert torch.allclose(got, want * 2, atol=1e-6)


def test_an_edit_under_iter_is_made_at_every_step_of_generate() -> None:
    model, _ = decoder("gpt2")
    widths = []

    def look(h: torch.Tensor) -> torch.Tensor:
        widths.append(h.shape[1])
        return h * -3

    with model.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            edited.transformer.h[1].output = look(edited.transformer.h[1].output)
    options = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        with edited.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options) as run:
            got = run.result.save()
        plain = model._module.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
    assert widths == [4, 1, 1]
    assert got.shape == plain.shape == (2, 7)
    assert torch.equal(got[:, :4], IDS)
    assert not torch.equal(got, plain)
    # `lw.generate` hides this one warning by its words.
    assert any("was never reached: the loop asked" in str(w.message) for w in told)


def test_an_error_of_a_user_s_function_comes_out_and_leaves_the_model_usable() -> None:
    model, z = decoder()

    def fail(h: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"), torch.no_grad(), model.trace(IDS):
        model.model.layers[0].output = fail(model.model.layers[0].output)
    with torch.no_grad():
        with model.trace(IDS):
            got = ns.save(model.output.logits)
        assert torch.equal(model._module(IDS).logits, z)
    assert torch.equal(got, z)


def test_reading_against_the_order_of_the_pass_is_an_outofordererror() -> None:
    model, _ = decoder()
    name = ""
    try:
        with torch.no_grad(), model.trace(IDS):
            ns.save(model.model.layers[1].output)
            ns.save(model.model.layers[0].output)
    except Exception as error:
        name = type(error).__name__
    assert name == "OutOfOrderError"


def test_a_module_added_before_wrapping_is_served_when_another_calls_it() -> None:
    module = toys.tiny("llama")[0]
    module.model.layers[0].mlp.add_module("probe", nn.Identity())
    mlp = module.model.layers[0].mlp
    mlp.act_fn.register_forward_hook(lambda m, a, out: mlp.get_submodule("probe")(out))
    model = _nnsight.wrap(module, toys.tokenizer())
    with torch.no_grad(), model.trace(IDS):
        probe = model.model.layers[0].mlp.probe
        seen = ns.save(probe.output)
        probe.output = seen * 0
        out = ns.save(model.model.layers[0].mlp.output)
    assert seen.shape == (2, 4, 40)
    assert not out.any()


def test_two_wrappers_of_one_module_take_turns() -> None:
    model, z = decoder()
    other = _nnsight.wrap(model._module, toys.tokenizer())
    with torch.no_grad():
        with other.trace(IDS):
            other.model.layers[0].output = other.model.layers[0].output * 2
            one = ns.save(other.output.logits)
        with model.trace(IDS):
            two = ns.save(model.output.logits)
    assert not torch.equal(one, z)
    assert torch.equal(two, z)


def test_a_wrapped_module_pickles_and_comes_back_plain_in_numbers() -> None:
    model, z = decoder()
    again = pickle.loads(pickle.dumps(model._module))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, z)


def test_save_is_mounted_for_users_and_can_be_taken_down_and_put_back() -> None:
    from nnsight import _c

    model, z = decoder()
    with torch.no_grad(), model.trace(IDS):
        got = model.output.logits.save()
    assert torch.equal(got, z)
    _c.unmount("save")
    try:
        assert not hasattr(object, "save")
    finally:
        _c.mount(ns.save, "save")
    assert hasattr(object, "save")


def test_blocks_are_looked_up_in_lwlab_s_table_by_a_frame_called_frame() -> None:
    from nnsight.tracing import globals as tables
    from nnsight.tracing import tracer

    model, _ = decoder()
    before = len(tables.BLOCKS)
    for _ in range(2):
        with torch.no_grad(), model.trace(IDS):
            h = ns.save(model.model.layers[0].output)
    assert h.shape == (2, 4, 32)
    assert tables.BLOCKS is tracer.BLOCKS
    assert type(tables.BLOCKS).__name__ == "Blocks"
    assert len(tables.BLOCKS) == before + 1
    here = [code for (name, *_), code in tables.BLOCKS if code and code.co_filename == name]
    assert any(code.co_name.startswith("test_blocks_are") for code in here)


RUN_ALL = """
tests = {name: f for name, f in list(globals().items()) if name.startswith("test_")}
kernel = tests.pop("test_all_of_this_holds_in_a_notebook_cell")
for name, test in tests.items():
    test()
print(len(tests), "passed in", type(get_ipython()).__name__)
"""


def test_all_of_this_holds_in_a_notebook_cell(tmp_path: Path) -> None:
    import nbformat

    from lwlab.notebook.engine import run_notebook

    cells = [nbformat.v4.new_code_cell(text) for text in (Path(__file__).read_text(), RUN_ALL)]
    output = tmp_path / "contract.ipynb"
    outcome = run_notebook(nbformat.v4.new_notebook(cells=cells), output, timeout=120)
    assert outcome.status == "ok", outcome.failure
    (said,) = nbformat.read(output, as_version=4).cells[-1].outputs
    count = sum(name.startswith("test_") for name in globals()) - 1
    assert said["text"] == f"{count} passed in ZMQInteractiveShell\n"
