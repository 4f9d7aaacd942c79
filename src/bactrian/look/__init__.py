"""Data before it is trained on: looked at, counted and questioned.

show.py    what the model sees of an example, a row, an update
page.py    the same as a page to search in
stats.py   lengths, turns, learnt tokens
check.py   what is strange about a data set
"""
