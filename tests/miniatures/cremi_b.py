from em import cremi

MINIATURE = cremi("B")
