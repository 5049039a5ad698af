from em import cremi

MINIATURE = cremi("C")
