"""The benchmarks of the Tulu 2 paper as its authors ran them: prompts, draws and scores of open-instruct at 60ceefa6d.

    https://github.com/allenai/open-instruct/tree/60ceefa6d9339663843decb69a1e6546fc717c4f/eval

One module each: `read` finds the data, `run` asks and scores.
"""
