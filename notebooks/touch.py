# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   lwlab:
#     id: touch
#     title: "The instruments: touch a model's layers"
# ---

# %% [markdown]
# # The instruments
#
# Each cell shows one instrument on a real model. Run the notebook, then click, drag and type:
# everything also answers to the keyboard, and to Python, as the cells do here. Where no kernel
# runs you see the picture that was there when the notebook was built.

# %% tags=["parameters"]
model = "smollm2-135m"

# %%
import lwlab as lw

net = lw.load(model)
task = lw.tasks.ioi(net, n=2)
net

# %% [markdown]
# ## Logit lens
#
# Type a prompt, and every layer says which token it would answer if the model stopped there. Ask
# the class in which layer *Paris* appears, and whether it appears at once or by degrees.

# %%
lens = lw.widgets.lens(net, "The capital of France is", " Paris")
lens.wait()
lens

# %% [markdown]
# ## Layer x position map
#
# The map estimates where the answer is carried; a click puts the clean prompt's stream into the
# corrupt run at that place and shows which token comes next now. Compare a bright cell with a pale
# one: the estimate cost two runs for the whole map, the click is the truth for one cell.

# %%
scores = lw.attribution.atp.scores(net, task, "resid_pre").sel(component="resid_pre")
where = lw.widgets.map(scores.mean("prompt"), net, task)
where

# %% [markdown]
# ## Token strip
#
# The same numbers, summed over layers, under the words they belong to. Which words matter is
# something a reader can guess first and check then.

# %%
words = list(task.tokens(net).strings[0])
strip = lw.widgets.tokens(scores.mean("prompt").sum("layer").values, tokens=words)
strip

# %% [markdown]
# ## Head grid
#
# Each cell is an attention head, coloured by how far its output moves the answer; a click opens
# where it looks and what it writes. Find a head that looks at a name and writes that name.

# %%
nodes = lw.attribution.nodes.scores(net, task, "relp", memory=1e8).mean("prompt")
values = nodes.values[nodes.sender_kind.values == "head"].reshape(net.n_layers, -1)
by_head = lw.results.label(values, ("layer", "head"), name="effect of the head")
heads = lw.widgets.heads(by_head, net, task.clean[0])
heads

# %% [markdown]
# ## Depth board
#
# Switch layers off, repeat them or drag them elsewhere, and read what the model would say. A middle
# layer is hardly missed, the first one is.

# %%
board = lw.widgets.depth(net, "The capital of France is")
board.steps = [i for i in range(net.n_layers) if i != net.n_layers // 2]
board.wait()
board

# %% [markdown]
# ## Steering dial
#
# A direction is added to the stream while the model writes: here, what a happy sentence
# has and a sad one has not. Turn it both ways, and find the strength at which the text falls apart.

# %%
middle = net.n_layers // 2
happy, sad = (
    lw.cache(net, text, "resid_post", [middle]).resid_post.values[0, 0, -1]
    for text in ("I am happy, what a wonderful day", "I am sad, what a terrible day")
)
dial = lw.widgets.steer(net, happy - sad, middle, "This morning I felt", strength=0.5)
dial.wait()
dial

# %% [markdown]
# ## Bit board
#
# Weights are rounded to a few bits, and the model reads a text with them: here, the last ten layers'
# to four. Round other layers as far, then let the allocator share out the same megabytes.

# %%
bits = lw.widgets.bits(net, bits=[16] * (net.n_layers - 10) + [4] * 10)
bits.wait()
bits

# %% [markdown]
# ## Circuit graph
#
# Components, and the edges between them that carry the answer; the slider keeps the strongest, the
# button cuts all others and measures what is left. How many of the model's edges are half of the
# effect?

# %%
edges = lw.attribution.edges.scores(net, task, "relp", memory=1e8)
graph = lw.widgets.circuit(edges, net, task, keep=30)
graph.measure()
graph.wait()
graph

# %% [markdown]
# ## Claims and atlas
#
# What the notebooks measured, claim by claim, and every paper of the catalogue. Filter by a verdict
# that is not *reproduced*: those make the best discussions.

# %%
ledger = lw.widgets.ledger()
ledger.where(verdict="not reproduced")
ledger

# %%
atlas = lw.widgets.atlas()
atlas.where(text="patching")
atlas
