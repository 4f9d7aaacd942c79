"""The command: one function per verb, each loading what it needs when it is called.

app.py          the verbs
plan.py         `bactrian plan`
evaluate.py     `bactrian evaluate`: MT-Bench, AlpacaEval, a judge's quality
benchmarks.py   `bactrian evaluate MODEL`: the paper's benchmarks, lm-eval's tasks
options.py      options that several verbs share
"""
