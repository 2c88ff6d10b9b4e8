"""Brings a model to this machine and makes sure that it is the one that was asked for.

cache.py     where models are kept, one writer at a time
digest.py    what `model.digest` is over
download.py  from any remote's files to a directory that is whole: resumed, atomic, once
web.py s3.py hub.py    the remotes
"""
