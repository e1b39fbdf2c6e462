"""What the scripts share, in rooms.  A room imports from itself and from those before it in this line, never after:

errors < kd_methods < files, metrics < config < data, loop < zoo, models < run < teachers < evaluation
< report < comparison, export.  `cache`, `tracking`, `porting`, `views` and `sources` are commands and names from
before the rooms.
"""
