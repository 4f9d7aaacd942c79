"""What a recipe needs on hardware that is not here: the very steps of a run, compiled for it with abstract arrays.

targets.py      chips by their vendors' figures; slices and nodes by name
gpus.py         a GPU as XLA's compiler wants it described
workload.py     updates and rows of a stage, from its data or from what the recipe says of it
steps.py        the steps of a run with abstract arrays
compile.py      each compiled in a process of its own
hlo_text.py     the words of compiled text, whichever version of XLA writes it
hlo.py          compiled text as a program: what runs how often
groups.py       who takes part in a collective
collectives.py  what devices send each other, by kind and mesh axis
products.py     the operations of matrix products
expected.py     what an update must come to, against which what was read is held
versions.py     the versions of jax that plans were tested with
memory.py       what lies in a device's memory at its fullest
estimate.py     operations, the least time, and the time that published runs lead one to expect
planning.py     all of it for one stage and target
check.py        what must not travel
search.py       other meshes, microbatches and remat policies
show.py         a plan for a person to read
"""
