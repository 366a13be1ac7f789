"""The EROFS image, ours and composefs's: one file with the whole tree (formats/erofs.md).

Three passes, none of which holds nodes in memory. `collecting`: every process writes what it gets to temporary files,
a directory at a time, in any order. `sharing`: which xattrs occur more than once. `placing` and `image`: all nodes in
their final order, twice: to know where each goes, and to write them.
"""
