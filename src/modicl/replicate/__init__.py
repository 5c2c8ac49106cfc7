"""The paper's findings, made again: which commands make each, and the record of what came of them.

`findings` is the list, `stages` runs a finding's commands and goes on after any interruption, `measurements` reads the
numbers out of the tables that they saved, and `record` writes them beside the paper's.
"""
