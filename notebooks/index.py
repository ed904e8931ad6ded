# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   lwlab:
#     id: index
#     title: "lwlab: look inside a neural network, layer by layer"
# ---

# %% [markdown]
# # lwlab: look inside a neural network, layer by layer
#
# Every notebook here takes one paper, runs its technique on a real language model on this
# computer, and measures the paper's claims again. This one is the door: a first look, the list of
# notebooks, and a panel that runs any of them.
#
# **New here?** Run the cells below from the top, then open
# [RelP](attribution/relp.ipynb): which parts of the model made it answer *Mary*? After it,
# [depth efficiency](depth/depth_efficiency.ipynb): does the model use all of its layers?
# [The instruments](touch.ipynb) has a cell for each widget. A path through two hours: `lwlab workshop`.

# %% tags=["parameters"]
model = "smollm2-135m"  # any Hugging Face id, local folder or GGUF file works too
prompt = "The capital of France is"
answer = " Paris"

# %%
import torch
from IPython.display import Markdown

import lwlab as lw
from lwlab.runs import door

# %% [markdown]
# ## A first look
#
# Load the model and run it once, keeping the residual stream after every layer. Then ask at each
# layer and position: *if the model stopped here, how many tokens would it find more likely than the
# answer?* (The logit lens: the final norm and the unembedding, applied early. 0 = the answer is its
# first choice; the scale is log10.)

# %%
net = lw.load(model)
net

# %%
streams = lw.cache(net, prompt, "resid_post").resid_post
with torch.no_grad():
    logits = net.unembed(torch.tensor(streams.values, device=net.device, dtype=net.dtype))[0]
above = (logits > logits[..., [net.token_id(answer)]]).sum(-1)
rank = lw.results.label(
    torch.log10(1.0 + above),
    ("layer", "position"),
    {"layer": streams.layer, "position": streams.position},
    name=f"log10(1 + rank of {answer!r})",
    model=net.name,
)
lw.charts.heatmap(rank, tokens=streams.token_str.values[0].tolist())

# %% [markdown]
# At the last position the answer climbs to the top in the last layers only. What if one layer were
# missing? `lw.chain` runs the layers in any order you like; `moved` says how far
# the prediction went from the whole model's, in nats.

# %%
last = net.n_layers - 1
for skipped in (1, net.n_layers // 2, last):
    run = lw.chain(net, prompt, [i for i in range(net.n_layers) if i != skipped])
    best = net.tokenizer.decode([int(run.logits[0].argmax("token"))])
    print(
        f"without layer {skipped:2d}: next token {best!r:12} moved {float(run.moved[0]):.3f} nats"
    )

# %% [markdown]
# ## The notebooks

# %%
Markdown(door.contents())

# %% [markdown]
# Run one from here. Each runs in a kernel of its own, with the parameters you choose, and leaves
# the executed notebook in `lwlab-runs`. (In a terminal: `lwlab run relp -p model=gpt2`.)

# %%
door.launcher()

# %% [markdown]
# ## What was claimed, and what was measured
#
# `exact` claims are mathematics and must hold. `paper` claims are the papers' findings, measured
# on the small default model: one that does not reproduce there is a result too, and is shown with
# its number. Each notebook ends with its own; `lw.widgets.ledger()` lists them all.

# %%
Markdown(door.verdicts())

# %% [markdown]
# ## Where things are
#
# | you want | type |
# |---|---|
# | another model | `lw.load("gpt2")`, `lw.load("path/to/folder")`, `lw.load("model.gguf")`, `lw.wrap(module)` |
# | the sites of a model | `net.sites()` |
# | activations | `lw.cache(net, prompts, ["resid_pre", "head_out"])` |
# | to change something | `lw.patch(net, prompts, {"resid_pre.7": 0.0})`, `lw.ablate(net, prompts, "head_out.3.5", "mean")` |
# | gradients, LRP rules | `lw.grads(net, prompts, metric, "mlp_out")`, `with lw.rules(net) as ruled: ...` |
# | ready prompts | `lw.tasks.ioi(net)`, `lw.tasks.greater_than(net)`, ... |
# | nnsight itself | `net.nn` |
