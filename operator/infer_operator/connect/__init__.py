"""`inferengine connect`: a kubeconfig and a tenant's name in, a chat with its endpoint out, from wherever kubectl works.

It is the operator's room for clients: it knows the objects that the operator makes, and nothing of tokens. The chat itself is the
server's command, found by name among the installed commands and given a credentials file, as any other program would be.
Only the extra `connect` has to be installed, without kopf or a store's client.

command.py      the command line, and what is done with the credentials
cluster.py      kubeconfig -> an API server that can be asked
access.py       the tenant's Secret -> Access; what is missing, told so that the reader can act
forwarder.py    a local port -> a ready pod, another one when that ends
tunnel.py       one connection to a pod's port through the API server
background.py   an event loop beside a program that isn't asynchronous
"""
