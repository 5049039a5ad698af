from em import cremi

MINIATURE = cremi("A")
