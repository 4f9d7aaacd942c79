"""Evaluation: answers, judgments and scores, each a file that the next is made from. Never imports model/."""
