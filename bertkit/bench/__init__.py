"""`bertkit bench`: our models beside the other engines, in one run, so that what else a machine does hits all alike.

`rounds.py` lets processes take turns, `worker.py` is such a process, `subjects.py` says what one measures, `engines.py`
holds the engines, `ibert.py` what is measured for I-BERT, `machine.py` the floors, `report.py` the table and the picture.
"""
